// Keys of nullhop's own, as the SDKs for Node see them: the twin of python/admission_suite.py, which explains the variables.

import Anthropic from '@anthropic-ai/sdk';
import { ApiError, GoogleGenAI } from '@google/genai';
import OpenAI from 'openai';
import { Agent, fetch as undiciFetch } from 'undici';

import { base, check, collect, equal, headers, main, raises, running, test } from './runner.mjs';

const KEYS = JSON.parse(process.env.NULLHOP_KEYS);
// What a caller brings where it pays itself.
const CALLERS = 'sk-callers-own-key-at-the-provider';
// The header for a key of nullhop's beside the provider's.
const BESIDE = 'x-nullhop-key';

const reached = (count) => console.log(`# reached ${running()} ${count}`);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** A fetch that writes down each status, those before a retry too. */
const counted = (own, seen) => async (...request) => {
  const reply = await own(...request);
  seen.push(reply.status);
  return reply;
};

class Sdk {
  // Whether it asks again when, and only when, it is told to.
  obedient = true;

  key(limit) {
    return KEYS[`${limit}/${this.upstream}/${this.versionName}`];
  }
}

/** What the OpenAI and the Anthropic SDK have in common. */
class Stainless extends Sdk {
  constructor(http2) {
    super();
    this.http2 = http2;
    this.versionName = http2 ? 'h2' : 'h1';
  }

  client(key, { seen = [], retries = 0, ...more } = {}) {
    return new this.Client({
      baseURL: base(this.upstream, this.version),
      apiKey: key,
      maxRetries: retries,
      timeout: 20_000,
      fetch: counted(this.http2 ? undiciFetch : fetch, seen),
      ...(this.http2 && { fetchOptions: { dispatcher: new Agent({ allowH2: true }) } }),
      defaultHeaders: { ...headers(), ...more },
    });
  }

  question(model, more) {
    return { model, max_tokens: 10, messages: [{ role: 'user', content: 'Hi' }], ...more };
  }

  ask(client, model = 'm', script) {
    return this.resource(client).create(this.question(model), { headers: headers(script) });
  }

  stream(client, model = 'm', options) {
    return this.resource(client).create(this.question(model, { stream: true }), options);
  }

  /** A stream as it came. */
  async plain(client) {
    return (await this.stream(client, 'count-5').asResponse()).text();
  }

  async refused(status, says, promise) {
    const name = { 401: 'AuthenticationError', 403: 'PermissionDeniedError', 429: 'RateLimitError' }[status];
    const error = await raises(this.Client[name], promise);
    equal(error.status, status);
    check(error.message.includes(says), `no ${says} in: ${error.message}`);
    return error;
  }

  async limits(client) {
    const { response } = await this.ask(client).withResponse();
    return this.limitHeaders.map((name) => response.headers.get(name));
  }
}

class OpenAiSdk extends Stainless {
  upstream = 'openai';
  version = '/v1';
  Client = OpenAI;
  limitHeaders = ['x-ratelimit-limit-requests', 'x-ratelimit-remaining-requests'];
  resource = (client) => client.chat.completions;
  text = (reply) => reply.choices[0].message.content;
  spent = (error) => equal([error.code, error.type], ['insufficient_quota', 'insufficient_quota']);
}

class AnthropicSdk extends Stainless {
  upstream = 'anthropic';
  version = '';
  Client = Anthropic;
  limitHeaders = ['anthropic-ratelimit-requests-limit', 'anthropic-ratelimit-requests-remaining'];
  resource = (client) => client.messages;
  text = (reply) => reply.content[0].text;
  spent = (error) => equal(error.error.error.type, 'rate_limit_error');
}

class GeminiSdk extends Sdk {
  upstream = 'gemini';
  versionName = 'h1';
  // It has a rhythm of its own, whatever an answer says.
  obedient = false;
  text = (reply) => reply.text;
  spent = () => {};

  client(key, { seen = [], retries = 0, ...more } = {}) {
    const httpOptions = {
      baseUrl: base('gemini'),
      timeout: 20_000,
      headers: { ...headers(), ...more },
      fetch: counted(fetch, seen),
      ...(retries && { retryOptions: { attempts: retries + 1, initialDelay: 1, jitter: 0 } }),
    };
    return new GoogleGenAI({ apiKey: key, vertexai: false, httpOptions });
  }

  ask(client, model = 'm', script) {
    const config = { maxOutputTokens: 10, httpOptions: { headers: headers(script) } };
    return client.models.generateContent({ model, contents: 'Hi', config });
  }

  stream(client, model = 'm', { signal } = {}) {
    return client.models.generateContentStream({ model, contents: 'Hi', config: { maxOutputTokens: 10, abortSignal: signal } });
  }

  async plain(client) {
    return (await collect(this.stream(client, 'count-5'))).map(({ sdkHttpResponse, ...chunk }) => JSON.stringify(chunk));
  }

  async refused(status, says, promise) {
    const error = await raises(ApiError, promise);
    equal(error.status, status);
    const word = { 401: 'UNAUTHENTICATED', 403: 'PERMISSION_DENIED', 429: 'RESOURCE_EXHAUSTED' }[status];
    check(error.message.includes(word) && error.message.includes(says), `no ${says} in: ${error.message}`);
    return error;
  }
}

test('managed_unary', async (sdk) => {
  check(sdk.text(await sdk.ask(sdk.client(KEYS.free))), 'no text');
  reached(1);
});

test('managed_stream', async (sdk) => {
  check((await collect(sdk.stream(sdk.client(KEYS.free), 'count-20'))).length >= 20, 'too few');
});

test('managed_key_in_its_own_header', async (sdk) => {
  check(sdk.text(await sdk.ask(sdk.client('placeholder', { [BESIDE]: KEYS.free }))), 'no text');
  reached(1);
});

test('passed', async (sdk) => {
  const client = sdk.client(CALLERS);
  check(sdk.text(await sdk.ask(client)), 'no text');
  check((await collect(sdk.stream(client, 'count-20'))).length >= 20, 'too few');
  reached(2);
});

test('passed_with_a_key_beside', async (sdk) => {
  const client = sdk.client(CALLERS, { [BESIDE]: sdk.key('beside') });
  check(sdk.text(await sdk.ask(client)), 'no text');
  check((await collect(sdk.stream(client, 'count-20'))).length >= 20, 'too few');
  await sdk.refused(429, '`requests`', sdk.ask(client));
  reached(2);
});

test('streams_are_what_they_are_without_a_key', async (sdk) => {
  const wanted = await sdk.plain(sdk.client(CALLERS));
  check(wanted.length > 4, 'too little');
  equal(await sdk.plain(sdk.client(KEYS.free)), wanted);
});

test('wrong_keys', async (sdk) => {
  const whole = KEYS.free;
  const slip = whole.slice(0, -1) + (whole.endsWith('a') ? 'b' : 'a');
  for (const key of ['nhk_wrong', slip, KEYS.stranger, KEYS.revoked]) {
    const seen = [];
    const client = sdk.client(key, { seen, retries: 2 });
    await sdk.refused(401, '', sdk.ask(client));
    await sdk.refused(401, '', collect(sdk.stream(client)));
    equal(seen, [401, 401]);
  }
  await sdk.refused(401, '', sdk.ask(sdk.client(CALLERS, { [BESIDE]: 'nhk_wrong' })));
  // Ours for pass-through, in the place of the provider's.
  await sdk.refused(401, '', sdk.ask(sdk.client(sdk.key('beside'))));
  reached(0);
});

test('not_for_this_upstream', async (sdk) => {
  const seen = [];
  await sdk.refused(403, '', sdk.ask(sdk.client(KEYS.elsewhere, { seen, retries: 2 })));
  equal(seen, [403]);
  reached(0);
});

test('not_for_this_model', async (sdk) => {
  const seen = [];
  const client = sdk.client(KEYS.narrow, { seen, retries: 2 });
  await sdk.refused(403, '', sdk.ask(client));
  await sdk.refused(403, '', collect(sdk.stream(client)));
  equal(seen, [403, 403]);
  check(sdk.text(await sdk.ask(client, 'fine-1')), 'no text');
  reached(1);
});

const rateIsWaitedFor = async (sdk) => {
  const seen = [];
  const client = sdk.client(sdk.key('rate'), { seen, retries: sdk.obedient ? 1 : 4 });
  const started = performance.now();
  check(sdk.text(await sdk.ask(client)) && sdk.text(await sdk.ask(client)), 'no text');
  const took = performance.now() - started;
  // One request in four seconds.
  check(took >= 4000, `served again after ${took} ms`);
  if (sdk.obedient) equal(seen, [200, 429, 200]);
  else equal([seen.filter((status) => status !== 429), seen[1]], [[200, 200], 429]);
  reached(2);
};
test('rate_is_waited_for', rateIsWaitedFor, { seconds: 30 });

for (const [name, limit, says] of [
  // Free again in many minutes, or tomorrow: no SDK waits that long, and each is told not to.
  ['tokens_that_are_used_up', 'tokens', '`output_tokens`'],
  ['budget_that_is_used_up', 'budget', '`tokens_per_day`'],
]) {
  test(name, async (sdk) => {
    const seen = [];
    const client = sdk.client(sdk.key(limit), { seen, retries: sdk.obedient ? 2 : 0 });
    check(sdk.text(await sdk.ask(client)), 'no text');
    const error = await sdk.refused(429, says, sdk.ask(client));
    if (limit === 'budget') sdk.spent(error);
    equal(seen, [200, 429]);
    reached(1);
  });
}

const aPlaceIsWaitedFor = async (sdk) => {
  const key = sdk.key('place');
  const controller = new AbortController();
  const events = (await sdk.stream(sdk.client(key), 'slow', { signal: controller.signal }))[Symbol.asyncIterator]();
  await events.next();
  await sdk.refused(429, '`concurrency`', sdk.ask(sdk.client(key)));
  const seen = [];
  const reply = sdk.ask(sdk.client(key, { seen, retries: sdk.obedient ? 20 : 4 }));
  while (!seen.length) await sleep(10);
  controller.abort();
  check(sdk.text(await reply), 'no text');
  equal([seen.at(-1), new Set(seen.slice(0, -1))], [200, new Set([429])]);
};
test('a_place_is_waited_for', aPlaceIsWaitedFor, { seconds: 40 });

test('what_is_left_is_told', async (sdk) => {
  if (sdk.upstream === 'gemini') return;
  const client = sdk.client(sdk.key('left'));
  equal([await sdk.limits(client), await sdk.limits(client)], [['5', '4'], ['5', '3']]);
  equal(await sdk.limits(sdk.client(KEYS.free)), [null, null]);
});

test('managed_usage_is_asked_for_and_hidden', async (sdk) => {
  if (sdk.upstream !== 'openai') return;
  const client = sdk.client(KEYS.free);
  const echo = await sdk.stream(client, 'm', { headers: headers('echo=1') }).asResponse();
  equal(await echo.json(), { ...sdk.question('m'), stream: true, stream_options: { include_usage: true } });
  for (const event of await collect(sdk.stream(client, 'count-5'))) check(event.choices.length && !('usage' in event), 'usage is seen');
  const asked = sdk.question('count-5', { stream: true, stream_options: { include_usage: true } });
  check((await collect(client.chat.completions.create(asked))).at(-1).usage.total_tokens > 0, 'no usage');
});

test('managed_by_other_calls', async (sdk) => {
  const client = sdk.client(KEYS.free);
  if (sdk.upstream === 'openai') {
    check((await client.responses.create({ model: 'm', input: 'Hi' })).output_text, 'no text');
    const events = await collect(client.responses.create({ model: 'm', input: 'Hi', stream: true }));
    equal(events.at(-1).type, 'response.completed');
    check((await client.embeddings.create({ model: 'm', input: 'Hi' })).data[0].embedding.length, 'no numbers');
  } else if (sdk.upstream === 'anthropic') {
    const question = { model: 'm', messages: [{ role: 'user', content: 'Hi' }] };
    check((await client.messages.countTokens(question)).input_tokens > 0, 'no count');
  } else {
    check((await client.models.embedContent({ model: 'm', contents: 'Hi' })).embeddings[0].values.length, 'no numbers');
  }
});

await main({
  'openai-h1': new OpenAiSdk(false),
  'openai-h2': new OpenAiSdk(true),
  'anthropic-h1': new AnthropicSdk(false),
  'anthropic-h2': new AnthropicSdk(true),
  gemini: new GeminiSdk(),
});
