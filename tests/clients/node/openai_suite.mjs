// The OpenAI SDK for Node through nullhop.

import OpenAI from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';

import * as questions from './questions.mjs';
import { ASKING, base, check, collect, equal, headers, KEY, main, test } from './runner.mjs';
import { policyRefuses, Sdk, wrongBase } from './stainless.mjs';

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

const TOLD_STREAMS = [
  { model: 'm' },
  { model: 'count-1' },
  { model: 'count-30' },
  { model: 'm', tools: CHAT_TOOLS },
  { model: 'm', stream_options: { include_obfuscation: false } },
];
const asking = (sdk) => sdk.client({ baseURL: `${ASKING}/openai/v1` });

const hidden = async (sdk) => {
  for (const options of TOLD_STREAMS) {
    const plain = await collect(sdk.ask({ stream: true, ...options }));
    equal(await collect(sdk.ask({ client: asking(sdk), stream: true, ...options })), plain);
  }
};
test('usage_asked_for_is_hidden', hidden, { own: true });

const blindly = async (sdk) => {
  for (const options of TOLD_STREAMS) {
    const events = await collect(sdk.ask({ client: asking(sdk), stream: true, ...options }));
    check(events.every((event) => event.choices[0].delta && !('usage' in event)), 'usage is seen');
  }
};
test('first_choices_are_read_blindly', blindly, { own: true });

const whoAsks = async (sdk) => {
  const options = { model: 'count-5', stream: true, stream_options: { include_usage: true } };
  const events = await collect(sdk.ask({ client: asking(sdk), ...options }));
  check(events.at(-1).usage.total_tokens > 0, 'no usage');
  equal(events, await collect(sdk.ask(options)));
};
test('who_asks_for_usage_gets_it', whoAsks, { own: true });

const helperOfAsking = async (sdk) => {
  const stream = asking(sdk).chat.completions.stream(sdk.question('count-5', 'Hi'));
  let text = '';
  stream.on('content', (delta) => (text += delta));
  const final = await stream.finalChatCompletion();
  equal(sdk.text(final), text);
  check(!final.usage, 'usage is seen');
};
test('stream_helper_of_the_one_that_asks', helperOfAsking, { own: true });

const refuses = async (sdk) => {
  const response = (wish) => (client) => client.responses.create({ model: 'm', input: 'Hi', ...wish });
  const calls = [
    response({ store: true }),
    response({ background: true }),
    response({ previous_response_id: 'resp_1' }),
    response({ conversation: 'conv_1' }),
    response({ tools: [{ type: 'file_search', vector_store_ids: ['vs_1'] }] }),
    response({ store: true, stream: true }),
    (client) => sdk.ask({ client, store: true }),
    (client) => client.conversations.create(),
    (client) => client.vectorStores.create({ name: 'x' }),
    (client) => client.batches.create({ input_file_id: 'f', endpoint: '/v1/chat/completions', completion_window: '24h' }),
    (client) => client.responses.retrieve('resp_1'),
  ];
  for (const error of await policyRefuses(sdk, calls, 'PermissionDeniedError', 403)) equal(error.code, 'policy_refused');
};
test('policy_refuses', refuses, { own: true });

test('base_without_version', (sdk) => wrongBase(sdk, '/openai', '/openai/v1'), { own: true });

await main({ h1: new OpenAiSdk(false), h2: new OpenAiSdk(true) });
