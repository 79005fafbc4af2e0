"""Runs a table of cases against nullhop, or with NULLHOP_DIRECT=1 against the provider, which proves the table itself.

The provider is asked through the headers `x-script` (what it should do) and `x-case` (who asked, for its journal). When a
client walks out of an exchange, a line `# left CASE NANOSECONDS` tells the instant on CLOCK_MONOTONIC: whoever started the
suite and the provider looks up in the journal how soon that arrived. In the same way `# sent CASE LENGTH SHA256` tells what
the body of a big request was, and `# refused CASE` that the provider must not have seen a whole request of it.

A case is a function that raises if something is wrong. Each has a deadline of its own, the suite has one for all.
Arguments on the command line pick the cases whose name contains one of them.
"""

import asyncio
import hashlib
import inspect
import os
import sys
import threading
import time
import traceback

SUITE = os.path.basename(sys.argv[0]).removesuffix(".py")
SUITE_SECONDS = 58

DIRECT = os.environ.get("NULLHOP_DIRECT") == "1"
PROVIDER = os.environ.get("PROVIDER_BASE", "").rstrip("/")
BASE = PROVIDER if DIRECT else os.environ["NULLHOP_BASE"].rstrip("/")
# Another nullhop before the same provider: it asks for usage where a client does not.
ASKING = os.environ.get("NULLHOP_ASKING_BASE", "").rstrip("/")
KEY = os.environ.get("NULLHOP_KEY", "sk-test")
FULL = os.environ.get("NULLHOP_SCALE") == "full"
STREAMS = 300 if FULL else 100

# Every SDK's HTTP client reads these, so that a caller's code changes in nothing but the base URL.
os.environ["SSL_CERT_FILE"] = os.environ["NULLHOP_CA"]
os.environ["NO_PROXY"] = "localhost,127.0.0.1"

cases = []
running = ""


def base(upstream, version=""):
    """The base URL to give to a client."""
    return BASE + ("" if DIRECT else f"/{upstream}") + version


def case(function=None, *, seconds=10, own=False):
    """Adds a case. `own` marks answers that nullhop makes itself: left out when the provider is asked directly."""
    if function is None:
        return lambda function: case(function, seconds=seconds, own=own)
    if not (own and DIRECT):
        cases.append((function, seconds))
    return function


def equal(got, wanted):
    if got != wanted:
        raise AssertionError(f"got {got!r:.200}, wanted {wanted!r:.200}")


class raises:
    """Expects an exception of exactly the right kind and keeps it as `.error`."""

    def __init__(self, kind, says="", **fields):
        self.kind, self.says, self.fields = kind, says, fields

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if error is None:
            raise AssertionError(f"no {self.kind} raised")
        if not isinstance(error, self.kind):
            return False
        self.error = error
        equal({name: getattr(error, name) for name in self.fields}, self.fields)
        if self.says not in str(error):
            raise AssertionError(f"{error!r:.300} does not mention {self.says!r}")
        return True


def headers(script=None):
    """What a request tells the provider."""
    return {"x-case": running, **({"x-script": script} if script else {})}


def left():
    """Call this right after walking out, and keep the client open: the exchange must end before its connection does."""
    print(f"# left {running} {time.monotonic_ns()}", flush=True)
    time.sleep(1.2)


def sent(body):
    """Tells what was sent. An echo cannot: these clients read nothing before they have written everything."""
    print(f"# sent {running} {len(body)} {hashlib.sha256(body).hexdigest()}", flush=True)


def refused():
    """Call this where nullhop has refused every request of this case."""
    print(f"# refused {running}", flush=True)


def arrives_in_steps(events):
    """The provider sends these 100 ms apart: whoever collects them on the way is found out."""
    times = [time.monotonic() for _, _ in zip(events, range(8))]
    gaps = [after - before for before, after in zip(times, times[1:])]
    if sum(gap > 0.05 for gap in gaps) < 4:
        raise AssertionError(f"events came in lumps: {gaps}")


def bounded(function, arguments, seconds):
    """Runs one case to its end or its deadline; tells what went wrong."""
    fault = [f"not done within {seconds:.0f} s"]

    def run():
        try:
            result = function(*arguments)
            if inspect.isawaitable(result):
                asyncio.run(asyncio.wait_for(result, seconds))
            fault[0] = None
        except BaseException as error:  # noqa: BLE001 - also SystemExit and friends are a failed case
            if os.environ.get("NULLHOP_VERBOSE"):
                traceback.print_exc()
            fault[0] = " ".join(f"{type(error).__name__}: {error}".split())[:400]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds + 0.5)
    return fault[0]


def main(rounds=None):
    """Runs all cases, once for each of `rounds`: a name and the arguments for every case of that round."""
    global running
    wanted = sys.argv[1:]
    end = time.monotonic() + SUITE_SECONDS
    failed = passed = 0
    for round_name, arguments in (rounds or {"": ()}).items():
        for function, seconds in cases:
            name = "/".join(filter(None, (round_name, function.__name__)))
            if wanted and not any(part in name for part in wanted):
                continue
            running = f"{SUITE}/{name}"
            started = time.monotonic()
            seconds = min(seconds, end - started)
            fault = bounded(function, arguments, seconds) if seconds > 0 else "the suite ran out of time"
            if os.environ.get("NULLHOP_VERBOSE"):
                print(f"   {time.monotonic() - started:.2f} s", end=" ")
            print(f"FAIL {name}: {fault}" if fault else f"ok {name}", flush=True)
            failed, passed = failed + bool(fault), passed + (not fault)
    print(f"{passed} passed, {failed} failed", flush=True)
    # Not sys.exit: a case that hangs in a thread must not keep the suite from ending.
    os._exit(1 if failed or not passed else 0)
