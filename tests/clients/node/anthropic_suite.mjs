// The Anthropic SDK for Node through nullhop.

import Anthropic from '@anthropic-ai/sdk';

import * as questions from './questions.mjs';
import { check, collect, equal, main, test } from './runner.mjs';
import { policyRefuses, Sdk, wrongBase } from './stainless.mjs';

const TOOLS = [{ name: 'weather', description: 'Weather of a city', input_schema: questions.TOOL_ARGUMENTS }];

class AnthropicSdk extends Sdk {
  upstream = 'anthropic';
  version = '';
  idHeader = 'request-id';
  Client = Anthropic;
  notFound = 'not_found_error';

  create(client, question, options) {
    return client.messages.create(question, options);
  }

  question(model, content, system) {
    return { model, max_tokens: 64, messages: [{ role: 'user', content }], ...(system && { system }) };
  }

  image(data) {
    return { type: 'image', source: { type: 'base64', media_type: 'image/png', data } };
  }

  text(reply) {
    return reply.content[0].text;
  }

  delta(event) {
    return event.type === 'content_block_delta' && event.delta.text;
  }

  errorKind(body) {
    return body.error.type;
  }
}

test('stream_helper', async (sdk) => {
  const stream = sdk.client().messages.stream(sdk.question('count-5', 'Hi'));
  let text = '';
  stream.on('text', (delta) => (text += delta));
  const final = await stream.finalMessage();
  equal(sdk.text(final), text);
  check(final.stop_reason && final.usage.output_tokens > 0, 'no end');
});

test('beta_messages', async (sdk) => {
  const question = { ...sdk.question('m', 'Hi'), betas: ['some-beta-2026-01-01'] };
  check((await sdk.client().beta.messages.create(question)).content.length, 'no content');
});

test('tool_call', async (sdk) => {
  const reply = await sdk.ask({ tools: TOOLS });
  const call = reply.content.find((block) => block.type === 'tool_use');
  equal([reply.stop_reason, call.name, typeof call.input], ['tool_use', 'weather', 'object']);
});

test('tool_call_streamed', async (sdk) => {
  const stream = sdk.client().messages.stream({ ...sdk.question('m', 'Hi'), tools: TOOLS });
  let pieces = 0;
  stream.on('inputJson', () => (pieces += 1));
  const call = (await stream.finalMessage()).content.find((block) => block.type === 'tool_use');
  check(pieces > 1, 'the arguments came in one piece');
  equal([call.name, typeof call.input], ['weather', 'object']);
});

test('count_tokens', async (sdk) => {
  const { max_tokens, ...question } = sdk.question('m', 'Hi', questions.SYSTEM);
  check((await sdk.client().messages.countTokens(question)).input_tokens > 0, 'no count');
});

test('models', async (sdk) => check((await collect(sdk.client().models.list())).length, 'no models'));

test('base_with_version', (sdk) => wrongBase(sdk, '/anthropic/v1', '/anthropic'), { own: true });

const refuses = async (sdk) => {
  const calls = [
    (client) => sdk.ask({ client, container: 'container_1' }),
    (client) => sdk.ask({ client, mcp_servers: [{ type: 'url', url: 'https://x.example', name: 'x' }] }),
    (client) => sdk.ask({ client, tools: [{ type: 'code_execution_20250825', name: 'code_execution' }] }),
    (client) => sdk.ask({ client, stream: true, container: 'container_1' }),
    (client) => client.messages.batches.create({ requests: [] }),
    (client) => client.post('/v1/files', { body: {} }),
  ];
  for (const error of await policyRefuses(sdk, calls, 'PermissionDeniedError', 403)) equal(sdk.errorKind(error.error), 'permission_error');
};
test('policy_refuses', refuses, { own: true });

const declined = async (sdk) => {
  const calls = [(client) => sdk.ask({ client, thread: { type: 'continue', previous_message_id: 'msg_1' } })];
  const [error] = await policyRefuses(sdk, calls, 'BadRequestError', 400);
  equal(error.error.error.details.error_code, 'thread_unsupported_request');
};
test('thread_continuation_is_declined', declined, { own: true });

await main({ h1: new AnthropicSdk(false), h2: new AnthropicSdk(true) });
