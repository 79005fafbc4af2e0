// Runs a table of cases: the twin of python/runner.py, which explains the variables, the headers and the lines printed.

import { createHash } from 'node:crypto';
import path from 'node:path';
import { isDeepStrictEqual } from 'node:util';

const SUITE = path.basename(process.argv[1], '.mjs').replace('_suite', '_node');
const SUITE_SECONDS = 58;

const env = process.env;
const DIRECT = env.NULLHOP_DIRECT === '1';
export const BASE = (DIRECT ? env.PROVIDER_BASE : env.NULLHOP_BASE).replace(/\/$/, '');
/** Another nullhop before the same provider: it asks for usage where a client does not. */
export const ASKING = (env.NULLHOP_ASKING_BASE ?? '').replace(/\/$/, '');
export const KEY = env.NULLHOP_KEY ?? 'sk-test';
export const FULL = env.NULLHOP_SCALE === 'full';
export const STREAMS = FULL ? 300 : 100;

const cases = [];
let current = '';

export const base = (upstream, version = '') => BASE + (DIRECT ? '' : `/${upstream}`) + version;

/** Adds a case. `own` marks answers that nullhop makes itself: left out when the provider is asked directly. */
export function test(name, run, { seconds = 10, own = false } = {}) {
  if (!(own && DIRECT)) cases.push({ name, run, seconds });
}

export function check(holds, otherwise) {
  if (!holds) throw new Error(otherwise);
}

export function equal(got, wanted) {
  const show = (value) => JSON.stringify(value)?.slice(0, 200);
  check(isDeepStrictEqual(got, wanted), `got ${show(got)}, wanted ${show(wanted)}`);
}

/** Expects an error of this class and hands it back. */
export async function raises(kind, promise) {
  let value;
  try {
    value = await promise;
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  throw new Error(`no ${kind.name} raised but ${String(value).slice(0, 100)} returned`);
}

export async function collect(stream, most = Infinity) {
  const events = [];
  for await (const event of await stream) if (events.push(event) >= most) break;
  return events;
}

/** The provider sends these 100 ms apart: whoever collects them on the way is found out. */
export async function arrivesInSteps(stream) {
  const times = [];
  for await (const _ of await stream) if (times.push(performance.now()) >= 8) break;
  const gaps = times.slice(1).map((time, index) => time - times[index]);
  check(gaps.filter((gap) => gap > 50).length >= 4, `events came in lumps: ${gaps}`);
}

/** The name of the case that runs now, for lines to whoever holds the provider's journal. */
export const running = () => current;

export const headers = (script) => ({ 'x-case': current, ...(script && { 'x-script': script }) });

/** Call this right after walking out, and keep the client open. */
export async function left() {
  console.log(`# left ${current} ${process.hrtime.bigint()}`);
  await sleep(1200);
}

export function sent(body) {
  const digest = createHash('sha256').update(body).digest('hex');
  console.log(`# sent ${current} ${Buffer.byteLength(body)} ${digest}`);
}

/** Call this where nullhop has refused every request of this case. */
export const refused = () => console.log(`# refused ${current}`);

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export const numbers = (count) => Array.from({ length: count }, (_, index) => index + 1);

const deadline = (seconds) =>
  new Promise((_, reject) => setTimeout(reject, seconds * 1000, new Error(`not done within ${seconds.toFixed()} s`)));

/** An error with its causes, on one line. */
export function reason(error) {
  const causes = [];
  for (; error; error = error.cause) causes.push(`${error.constructor?.name}: ${error.message ?? error}`);
  return causes.join(' <- ').replace(/\s+/g, ' ').slice(0, 400);
}

/** Runs all cases, once for each of `rounds`: a name and the argument for every case of that round. */
export async function main(rounds = { '': undefined }) {
  // A stream that is torn down rejects promises nobody waits for.
  process.on('unhandledRejection', () => {});
  const wanted = process.argv.slice(2);
  const end = performance.now() + SUITE_SECONDS * 1000;
  let passed = 0;
  let failed = 0;
  for (const [round, argument] of Object.entries(rounds)) {
    for (const { name: short, run, seconds } of cases) {
      const name = round ? `${round}/${short}` : short;
      if (wanted.length && !wanted.some((part) => name.includes(part))) continue;
      current = `${SUITE}/${name}`;
      try {
        await Promise.race([run(argument), deadline(Math.min(seconds, (end - performance.now()) / 1000))]);
        passed += 1;
        console.log(`ok ${name}`);
      } catch (error) {
        failed += 1;
        if (env.NULLHOP_VERBOSE) console.log(error);
        console.log(`FAIL ${name}: ${reason(error)}`);
      }
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed || !passed ? 1 : 0);
}
