// The OpenAI SDK for Node through nullhop.

import OpenAI from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';

import * as questions from './questions.mjs';
import { base, check, collect, equal, headers, KEY, main, test } from './runner.mjs';
import { Sdk, wrongBase } from './stainless.mjs';

const TOOL = { name: 'weather', description: 'Weather of a city', parameters: questions.TOOL_ARGUMENTS };
const CHAT_TOOLS = [{ type: 'function', function: TOOL }];

class OpenAiSdk extends Sdk {
  upstream = 'openai';
  version = '/v1';
  idHeader = 'x-request-id';
  Client = OpenAI;
  notFound = 'not_found';

  create(client, question, options) {
    return client.chat.completions.create(question, options);
  }

  question(model, content, system) {
    return { model, messages: [...(system ? [{ role: 'system', content: system }] : []), { role: 'user', content }] };
  }

  image(data) {
    return { type: 'image_url', image_url: { url: `data:image/png;base64,${data}` } };
  }

  text(reply) {
    return reply.choices[0].message.content;
  }

  delta(event) {
    return event.choices[0]?.delta.content;
  }

  errorKind(body) {
    return body.code;
  }
}

test('usage_in_the_stream', async (sdk) => {
  const events = await collect(sdk.ask({ model: 'count-5', stream: true, stream_options: { include_usage: true } }));
  check(events.at(-1).usage.total_tokens > 0, 'no usage');
});

test('stream_helper', async (sdk) => {
  const stream = sdk.client().chat.completions.stream(sdk.question('count-5', 'Hi'));
  let text = '';
  stream.on('content', (delta) => (text += delta));
  equal(sdk.text(await stream.finalChatCompletion()), text);
});

test('tool_call', async (sdk) => {
  const reply = await sdk.ask({ tools: CHAT_TOOLS });
  const call = reply.choices[0].message.tool_calls[0];
  equal([reply.choices[0].finish_reason, call.function.name], ['tool_calls', 'weather']);
  equal(typeof JSON.parse(call.function.arguments), 'object');
});

test('tool_call_streamed', async (sdk) => {
  const events = await collect(sdk.ask({ stream: true, tools: CHAT_TOOLS }));
  const pieces = events.flatMap((event) => event.choices[0]?.delta.tool_calls ?? []);
  equal(pieces.map((piece) => piece.function.name).filter(Boolean), ['weather']);
  check(pieces.length > 1, 'the arguments came in one piece');
  equal(typeof JSON.parse(pieces.map((piece) => piece.function.arguments ?? '').join('')), 'object');
});

test('response', async (sdk) => {
  const reply = await sdk.client().responses.create({ model: 'm', input: 'Hi', instructions: questions.SYSTEM });
  check(reply.output_text && reply.usage.total_tokens > 0, 'no text or usage');
});

test('response_streamed', async (sdk) => {
  const events = await collect(sdk.client().responses.create({ model: 'm', input: 'Hi', stream: true }));
  const deltas = events.filter((event) => event.type === 'response.output_text.delta').map((event) => event.delta);
  equal(events.at(-1).type, 'response.completed');
  equal(deltas.join(''), events.at(-1).response.output[0].content[0].text);
});

test('embeddings', async (sdk) => {
  const reply = await sdk.client().embeddings.create({ model: 'm', input: ['Hi', questions.SYSTEM] });
  equal(typeof reply.data[0].embedding[0], 'number');
});

test('models', async (sdk) => check((await collect(sdk.client().models.list())).length, 'no models'));

test('realtime', async (sdk) => {
  if (sdk.http2) return;
  const client = { apiKey: KEY, baseURL: base('openai', '/v1') };
  const realtime = new OpenAIRealtimeWS({ model: 'x', options: { headers: headers() } }, client);
  const event = await new Promise((resolve, reject) => {
    realtime.on('event', resolve);
    realtime.on('error', reject);
    realtime.socket.on('open', () => realtime.send({ type: 'response.create', response: { instructions: 'höi' } }));
  });
  equal([event.type, event.response.instructions], ['response.create', 'höi']);
  realtime.close();
});

test('base_without_version', (sdk) => wrongBase(sdk, '/openai', '/openai/v1'), { own: true });

await main({ h1: new OpenAiSdk(false), h2: new OpenAiSdk(true) });
