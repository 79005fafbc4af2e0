// What the OpenAI and the Anthropic SDK have in common: the twin of python/stainless.py.

import { subscribe } from 'node:diagnostics_channel';

import { Agent, fetch as undiciFetch } from 'undici';

import * as questions from './questions.mjs';
import { BASE, KEY, STREAMS, arrivesInSteps, base, check, collect, equal, headers, left, numbers, raises, reason, refused, sent, test } from './runner.mjs';

export class Sdk {
  // A subclass names upstream, version, idHeader, Client and notFound, and has these methods:
  //   create(client, question, options), question(model, content, system), image(data), text(reply), delta(event), errorKind(body)

  constructor(http2) {
    this.http2 = http2;
  }

  /** `seen` is a list for the arguments of all requests, those of a retry too. */
  client({ seen, ...options } = {}) {
    const own = this.http2 ? undiciFetch : fetch;
    const counted = seen && ((...request) => own(...request).finally(() => seen.push(request)));
    return new this.Client({
      baseURL: base(this.upstream, this.version),
      apiKey: KEY,
      maxRetries: 0,
      timeout: 9000,
      // Without a reason to do otherwise the SDK uses the runtime's fetch.
      ...((this.http2 || seen) && { fetch: counted ?? own }),
      ...(this.http2 && { fetchOptions: { dispatcher: new Agent({ allowH2: true }) } }),
      ...options,
    });
  }

  ask({ client = this.client(), model = 'm', content = 'Hi', system, script, signal, ...options } = {}) {
    return this.create(client, { ...this.question(model, content, system), ...options }, { headers: headers(script), signal });
  }

  /** The request body as the provider received it. */
  async echoed(question) {
    return (await this.ask({ script: 'echo=1', ...question }).asResponse()).json();
  }

  textEvents(events) {
    return events.filter((event) => this.delta(event));
  }
}

const protocols = [];
subscribe('undici:client:connected', ({ socket }) => protocols.push(socket.alpnProtocol));

test('http_version', async (sdk) => {
  await sdk.ask();
  equal(protocols.at(-1), sdk.http2 ? 'h2' : 'http/1.1');
});

test('unary', async (sdk) => check(sdk.text(await sdk.ask()), 'no text'));

test('stream', async (sdk) => {
  equal(sdk.textEvents(await collect(sdk.ask({ model: 'count-20', stream: true }))).length, 20);
});

test('stream_arrives_as_it_is_sent', (sdk) => arrivesInSteps(sdk.ask({ model: 'slow', stream: true })));

test('broken_stream_is_an_error', (sdk) =>
  raises(Error, collect(sdk.ask({ model: 'count-200', stream: true, script: 'reset_after=3000' }))));

test('abort_controller', async (sdk) => {
  const controller = new AbortController();
  const stream = await sdk.ask({ model: 'slow', stream: true, signal: controller.signal });
  let events = 0;
  for await (const _ of stream) if (++events === 3) controller.abort();
  equal(events, 3);
  await left();
});

test('break_out_of_the_loop', async (sdk) => {
  equal((await collect(sdk.ask({ model: 'slow', stream: true }), 3)).length, 3);
  await left();
});

test('abort_before_the_head', async (sdk) => {
  const controller = new AbortController();
  const reply = sdk.ask({ script: 'head_delay_ms=8000', signal: controller.signal });
  setTimeout(() => controller.abort(), 300);
  await raises(sdk.Client.APIUserAbortError, reply);
  await left();
});

test('system_prompt_arrives_unchanged', async (sdk) => {
  equal(await sdk.echoed({ system: questions.SYSTEM }), sdk.question('m', 'Hi', questions.SYSTEM));
});

for (const [name, size] of [['1_mb', 1_000_000], ['20_mb', 20_000_000]]) {
  const run = async (sdk) => {
    const content = [{ type: 'text', text: 'What is this?' }, sdk.image(questions.imageBase64(size))];
    const seen = [];
    check(sdk.text(await sdk.ask({ client: sdk.client({ seen }), content })), 'no text');
    sent(seen[0][1].body);
  };
  test(`image_${name}`, run, { seconds: 20 });
}

for (const [status, kind] of Object.entries({
  400: 'BadRequestError',
  401: 'AuthenticationError',
  403: 'PermissionDeniedError',
  404: 'NotFoundError',
  409: 'ConflictError',
  413: 'APIError',
  422: 'UnprocessableEntityError',
  429: 'RateLimitError',
  500: 'InternalServerError',
  503: 'InternalServerError',
  529: 'InternalServerError',
})) {
  test(`error_${status}`, async (sdk) => {
    for (const stream of [false, true]) {
      const error = await raises(sdk.Client[kind], sdk.ask({ model: `err-${status}`, stream }));
      equal(error.status, Number(status));
      check(error.error && error.requestID, 'without body or id');
    }
  });
}

test('retry_after_is_honoured', async (sdk) => {
  const seen = [];
  const started = performance.now();
  await raises(sdk.Client.RateLimitError, sdk.ask({ client: sdk.client({ seen, maxRetries: 1 }), model: 'err-429' }));
  const took = performance.now() - started;
  equal(seen.length, 2);
  check(took >= 1000 && took < 3000, `asked again after ${took} ms`);
});

test('should_retry_is_honoured', async (sdk) => {
  const seen = [];
  const client = sdk.client({ seen, maxRetries: 2 });
  await raises(sdk.Client.InternalServerError, sdk.ask({ client, model: 'err-500', script: 'header=x-should-retry:false' }));
  equal(seen.length, 1);
});

test('headers_pass', async (sdk) => {
  const { data, response, request_id } = await sdk.ask({ script: 'header=openai-processing-ms:41' }).withResponse();
  equal(response.headers.get('openai-processing-ms'), '41');
  check(request_id && request_id === response.headers.get(sdk.idHeader), `request id ${request_id}`);
  equal(data._request_id, request_id);
});

test('timeout_before_the_head', async (sdk) => {
  const started = performance.now();
  const reply = sdk.ask({ client: sdk.client({ timeout: 500 }), script: 'head_delay_ms=5000' });
  await raises(sdk.Client.APIConnectionTimeoutError, reply);
  check(performance.now() - started < 2000, 'too late');
});

const parallelStreams = async (sdk) => {
  const client = sdk.client({ timeout: 20_000 });
  const one = async (count) => sdk.textEvents(await collect(sdk.ask({ client, model: `count-${count}`, stream: true }))).length;
  equal(await Promise.all(numbers(STREAMS).map(one)), numbers(STREAMS));
};
test('parallel_streams', parallelStreams, { seconds: 25 });

const unknownRoute = async (sdk) => {
  const seen = [];
  const client = sdk.client({ seen, maxRetries: 2, baseURL: `${BASE}/nowhere${sdk.version}` });
  const error = await raises(sdk.Client.NotFoundError, sdk.ask({ client }));
  equal(sdk.errorKind(error.error), sdk.notFound);
  equal(error.headers.get('x-should-retry'), 'false');
  equal(seen.length, 1);
};
test('unknown_route', unknownRoute, { own: true });

export async function wrongBase(sdk, path, hint) {
  const seen = [];
  const client = sdk.client({ seen, maxRetries: 2, baseURL: BASE + path });
  const error = await raises(sdk.Client.NotFoundError, sdk.ask({ client }));
  check(error.message.includes(hint), `no hint in: ${error.message}`);
  equal(seen.length, 1);
}

/** Each of `calls` takes a client and is answered by nullhop, once and for all. Gives the errors. */
export async function policyRefuses(sdk, calls, kind, status) {
  const errors = [];
  for (const [number, call] of calls.entries()) {
    const seen = [];
    const client = sdk.client({ seen, maxRetries: 2, defaultHeaders: headers() });
    const error = await raises(sdk.Client[kind], call(client)).catch((error) => {
      throw new Error(`call ${number}`, { cause: error });
    });
    equal([error.status, seen.length], [status, 1]);
    errors.push(error);
  }
  refused();
  return errors;
}

const bodyOverTheLimit = async (sdk) => {
  // With more than 10 MB still to send, Node's HTTP/2 refuses the answer's head (ENHANCE_YOUR_CALM), whoever sends it.
  if (sdk.http2) return;
  const seen = [];
  const client = sdk.client({ seen, maxRetries: 2 });
  const error = await raises(sdk.Client.APIError, sdk.ask({ client, content: 'x'.repeat(33 << 20) }));
  check(error.status === 413, reason(error));
  check(JSON.stringify(error.error).includes('request_too_large'), `${error.message}`);
  equal(seen.length, 1);
};
test('body_over_the_limit', bodyOverTheLimit, { seconds: 20, own: true });
