// The Google Gen AI SDK for Node through nullhop.

import { ApiError, GoogleGenAI } from '@google/genai';

import * as questions from './questions.mjs';
import { BASE, KEY, STREAMS, arrivesInSteps, base, check, collect, equal, headers, left, main, numbers, raises, refused as neverWhole, sent, test } from './runner.mjs';

const TOOLS = [{ functionDeclarations: [{ name: 'weather', parametersJsonSchema: questions.TOOL_ARGUMENTS }] }];

const connect = (options) =>
  new GoogleGenAI({ apiKey: KEY, vertexai: false, httpOptions: { baseUrl: base('gemini'), timeout: 9000, ...options } });

const question = ({ client = connect(), model = 'm', contents = 'Hi', script, ...config }) => [
  client.models,
  { model, contents, config: { httpOptions: { headers: headers(script) }, ...config } },
];

const ask = (options = {}) => {
  const [models, parameters] = question(options);
  return models.generateContent(parameters);
};

const askStream = (options = {}) => {
  const [models, parameters] = question(options);
  return models.generateContentStream(parameters);
};

/** A client that shows the text of what goes out and comes in. */
const watched = (look) =>
  connect({
    fetch: async (url, init) => {
      const reply = await fetch(url, init);
      look(init.body, await reply.clone().text());
      return reply;
    },
  });

test('unary', async () => {
  const reply = await ask();
  check(reply.text && reply.usageMetadata.totalTokenCount > 0, 'no text or usage');
});

test('stream', async () => {
  const chunks = await collect(askStream({ model: 'count-20' }));
  equal(chunks.filter((chunk) => chunk.text).length, 20);
  check(chunks.at(-1).usageMetadata.totalTokenCount > 0, 'no usage');
});

test('stream_arrives_as_it_is_sent', () => arrivesInSteps(askStream({ model: 'slow' })));

test('broken_stream_is_an_error', () => raises(Error, collect(askStream({ model: 'count-200', script: 'reset_after=3000' }))));

test('abort_controller', async () => {
  const controller = new AbortController();
  let events = 0;
  const listen = async () => {
    for await (const _ of await askStream({ model: 'slow', abortSignal: controller.signal })) if (++events === 3) controller.abort();
  };
  await listen().catch(() => {});
  equal(events, 3);
  await left();
});

test('system_prompt_arrives_unchanged', async () => {
  let got;
  const client = watched((_, reply) => (got = JSON.parse(reply)));
  await ask({ client, script: 'echo=1', systemInstruction: questions.SYSTEM });
  equal(got.systemInstruction.parts[0].text, questions.SYSTEM);
});

for (const [name, size] of [['1_mb', 1_000_000], ['20_mb', 20_000_000]]) {
  const run = async () => {
    const data = questions.imageBase64(size);
    const contents = [{ role: 'user', parts: [{ text: 'What is this?' }, { inlineData: { mimeType: 'image/png', data } }] }];
    check((await ask({ client: watched((body) => sent(body)), contents })).text, 'no text');
  };
  test(`image_${name}`, run, { seconds: 20 });
}

test('function_call', async () => {
  const [streamed] = await collect(askStream({ tools: TOOLS }));
  for (const reply of [await ask({ tools: TOOLS }), streamed]) {
    equal([reply.functionCalls[0].name, typeof reply.functionCalls[0].args], ['weather', 'object']);
  }
});

test('count_tokens', async () => {
  check((await connect().models.countTokens({ model: 'm', contents: questions.SYSTEM })).totalTokens > 0, 'no count');
});

test('embeddings', async () => {
  check((await connect().models.embedContent({ model: 'm', contents: 'Hi' })).embeddings[0].values.length, 'no numbers');
});

test('models', async () => check((await collect(connect().models.list())).length, 'no models'));

for (const status of [400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 529]) {
  test(`error_${status}`, async () => {
    equal((await raises(ApiError, ask({ model: `err-${status}` }))).status, status);
    equal((await raises(ApiError, collect(askStream({ model: `err-${status}` })))).status, status);
  });
}

test('headers_pass', async () => {
  equal((await ask({ script: 'header=x-canary:41' })).sdkHttpResponse.headers['x-canary'], '41');
});

test('timeout_before_the_head', async () => {
  const started = performance.now();
  await raises(Error, ask({ client: connect({ timeout: 500 }), script: 'head_delay_ms=5000' }));
  check(performance.now() - started < 2000, 'too late');
});

const parallelStreams = async () => {
  const client = connect({ timeout: 20_000 });
  const one = async (count) => {
    const chunks = await collect(askStream({ client, model: `count-${count}` }));
    return chunks.filter((chunk) => chunk.text).length;
  };
  equal(await Promise.all(numbers(STREAMS).map(one)), numbers(STREAMS));
};
test('parallel_streams', parallelStreams, { seconds: 25 });

const refused = async (status, name, options) => {
  const error = await raises(ApiError, ask(options));
  equal(error.status, status);
  check(error.message.includes(name), `no ${name} in: ${error.message}`);
};
test('unknown_route', () => refused(404, 'NOT_FOUND', { client: connect({ baseUrl: `${BASE}/nowhere` }) }), { own: true });
test('body_over_the_limit', () => refused(413, 'INVALID_ARGUMENT', { contents: 'x'.repeat(33 << 20) }), { own: true, seconds: 20 });

const refuses = async () => {
  const client = connect({ headers: headers() });
  const search = [{ googleSearch: {} }];
  const calls = [
    () => ask({ client, tools: search }),
    () => collect(askStream({ client, tools: search })),
    () => ask({ client, cachedContent: 'cachedContents/x' }),
    () => ask({ client, contents: [{ fileData: { fileUri: 'https://x.example/f', mimeType: 'text/plain' } }] }),
    () => client.caches.create({ model: 'models/m', config: { contents: 'Hi' } }),
  ];
  for (const call of calls) {
    const error = await raises(ApiError, call());
    equal(error.status, 403);
    check(error.message.includes('PERMISSION_DENIED'), error.message);
  }
  neverWhole();
};
test('policy_refuses', refuses, { own: true });

await main();
