"""What the OpenAI and the Anthropic SDK have in common: they come from one generator and differ in names."""

import asyncio
import json
import time

import httpx2

import questions
from runner import BASE
from runner import KEY
from runner import STREAMS
from runner import arrives_in_steps
from runner import base
from runner import case
from runner import equal
from runner import headers
from runner import left
from runner import raises
from runner import refused
from runner import sent


class Sdk:
    """One SDK over one HTTP version. A subclass names the SDK's parts."""

    upstream = version = id_header = None
    module = sync_class = async_class = None

    def __init__(self, http2):
        self.http2 = http2

    # What a subclass fills in: `create` of which resource, with what, and the text in what comes back.
    def resource(self, client): ...
    def question(self, model, content, system=None): ...
    def image(self, data): ...
    def text(self, reply): ...
    def delta(self, event): ...

    # How this dialect says in an error's body that a route does not exist.
    not_found = None

    def error_kind(self, body): ...

    def options(self, http_class, hooks, options):
        # The default client stays the SDK's own; another one is made only where a case needs more of it.
        if self.http2 or hooks:
            options["http_client"] = http_class(http2=self.http2, event_hooks=hooks)
        return {"base_url": base(self.upstream, self.version), "api_key": KEY, "max_retries": 0, "timeout": 9, **options}

    def client(self, seen=None, on_request=None, **options):
        """`seen` is a list for all responses, those before a retry too."""
        hooks = {"response": [] if seen is None else [seen.append], "request": [on_request] if on_request else []}
        hooks = {event: calls for event, calls in hooks.items() if calls}
        return self.sync_class(**self.options(self.module.DefaultHttpxClient, hooks, options))

    def async_client(self, **options):
        return self.async_class(**self.options(self.module.DefaultAsyncHttpxClient, {}, options))

    def ask(self, client, model="m", content="Hi", system=None, script=None, raw=False, **options):
        resource = self.resource(client)
        create = resource.with_raw_response.create if raw else resource.create
        return create(**self.question(model, content, system), extra_headers=headers(script), **options)

    def echoed(self, client, **question):
        """The request body as the provider received it."""
        return json.loads(self.ask(client, script="echo=1", raw=True, **question).http_response.content)


@case
def unary(sdk):
    with sdk.client() as client:
        assert sdk.text(sdk.ask(client))


@case
def http_version(sdk):
    with sdk.client() as client:
        equal(sdk.ask(client, raw=True).http_response.http_version, "HTTP/2" if sdk.http2 else "HTTP/1.1")


@case
def stream_in_a_context(sdk):
    with sdk.client() as client, sdk.ask(client, "count-20", stream=True) as stream:
        equal(len([event for event in stream if sdk.delta(event)]), 20)


@case
def stream_arrives_as_it_is_sent(sdk):
    with sdk.client() as client:
        arrives_in_steps(sdk.ask(client, "slow", stream=True))


@case
def broken_stream_is_an_error(sdk):
    with sdk.client() as client:
        with raises((sdk.module.APIConnectionError, httpx2.TransportError)):
            list(sdk.ask(client, "count-200", stream=True, script="reset_after=3000"))


@case
def cancel(sdk):
    with sdk.client() as client:
        stream = sdk.ask(client, "slow", stream=True)
        equal(len([event for event, _ in zip(stream, range(3))]), 3)
        stream.close()
        if sdk.http2:
            client.close()  # httpcore2 sends no RST_STREAM: only the end of the connection tells the other side.
        left()


@case
def system_prompt_arrives_unchanged(sdk):
    with sdk.client() as client:
        got = sdk.echoed(client, system=questions.SYSTEM)
        equal(got, sdk.question("m", "Hi", questions.SYSTEM))


def image(sdk, size):
    content = [{"type": "text", "text": "What is this?"}, sdk.image(questions.image_base64(size))]
    with sdk.client(on_request=lambda request: sent(request.content)) as client:
        assert sdk.text(sdk.ask(client, content=content))


@case
def image_1_mb(sdk):
    image(sdk, 1_000_000)


@case(seconds=20)
def image_20_mb(sdk):
    image(sdk, 20_000_000)


def error_case(status, kind):
    def error(sdk):
        kinds = [getattr(sdk.module, name) for name in kind.split("|") if hasattr(sdk.module, name)]
        with sdk.client(max_retries=0) as client:
            with raises(kinds[0], status_code=status) as caught:
                sdk.ask(client, f"err-{status}")
            assert "message" in json.dumps(caught.error.body), caught.error.body
            with raises(kinds[0], status_code=status):
                sdk.ask(client, f"err-{status}", stream=True)

    error.__name__ = f"error_{status}"
    return error


for status, kind in {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    413: "RequestTooLargeError|APIStatusError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError|InternalServerError",
    529: "OverloadedError|InternalServerError",
}.items():
    case(error_case(status, kind))


@case
def retry_after_is_honoured(sdk):
    seen = []
    with sdk.client(seen=seen, max_retries=1) as client:
        started = time.monotonic()
        with raises(sdk.module.RateLimitError):
            sdk.ask(client, "err-429")
        took = time.monotonic() - started
    equal([response.status_code for response in seen], [429, 429])
    assert 1 <= took < 3, f"asked again after {took:.2f} s"


@case
def should_retry_is_honoured(sdk):
    seen = []
    with sdk.client(seen=seen, max_retries=2) as client:
        with raises(sdk.module.InternalServerError):
            sdk.ask(client, "err-500", script="header=x-should-retry:false")
    equal(len(seen), 1)


@case
def headers_pass(sdk):
    with sdk.client() as client:
        raw = sdk.ask(client, raw=True, script="header=openai-processing-ms:41")
        equal(raw.headers["openai-processing-ms"], "41")
        assert raw.request_id and raw.request_id == raw.headers[sdk.id_header]
        assert sdk.ask(client)._request_id
        with raises(sdk.module.BadRequestError) as caught:
            sdk.ask(client, "err-400")
        assert caught.error.request_id


@case
def streamed_raw_response(sdk):
    with sdk.client() as client:
        create = sdk.resource(client).with_streaming_response.create
        with create(**sdk.question("count-3", "Hi"), stream=True) as response:
            equal(response.headers["content-type"].split(";")[0], "text/event-stream")
            assert any(line.startswith("data:") for line in response.iter_lines())


@case
def timeout_before_the_head(sdk):
    with sdk.client(timeout=0.5) as client:
        started = time.monotonic()
        with raises(sdk.module.APITimeoutError):
            sdk.ask(client, script="head_delay_ms=5000")
        assert time.monotonic() - started < 2


@case
def timeout_in_the_stream(sdk):
    with sdk.client(timeout=0.7) as client:
        started = time.monotonic()
        with raises((sdk.module.APITimeoutError, httpx2.TimeoutException)):
            list(sdk.ask(client, "count-200", stream=True, script="stall_after=3000"))
        assert time.monotonic() - started < 3


@case(seconds=25)
async def parallel_streams(sdk):
    async def one(client, count):
        async with await sdk.ask(client, f"count-{count}", stream=True) as stream:
            return len([event async for event in stream if sdk.delta(event)])

    counts = range(1, STREAMS + 1)
    async with sdk.async_client(timeout=20) as client:
        equal(await asyncio.gather(*(one(client, count) for count in counts)), list(counts))


@case
async def cancelled_task(sdk):
    async with sdk.async_client() as client:
        started = asyncio.Event()

        async def listen():
            async for _ in await sdk.ask(client, "slow", stream=True):
                started.set()

        task = asyncio.create_task(listen())
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if sdk.http2:
            await client.close()
        left()


@case(own=True)
def unknown_route(sdk):
    seen = []
    with sdk.client(seen=seen, max_retries=2, base_url=BASE + "/nowhere" + sdk.version) as client:
        with raises(sdk.module.NotFoundError) as caught:
            sdk.ask(client)
    equal(sdk.error_kind(caught.error.body), sdk.not_found)
    equal(caught.error.response.headers["x-should-retry"], "false")
    equal(len(seen), 1)


def wrong_base(sdk, path, hint):
    seen = []
    with sdk.client(seen=seen, max_retries=2, base_url=BASE + path) as client:
        with raises(sdk.module.NotFoundError, says=hint):
            sdk.ask(client)
    equal(len(seen), 1)


@case(own=True, seconds=20)
def body_over_the_limit(sdk):
    seen = []
    with sdk.client(seen=seen, max_retries=2) as client:
        with raises(sdk.module.APIStatusError, status_code=413) as caught:
            sdk.ask(client, content="x" * (33 << 20))
    assert "request_too_large" in json.dumps(caught.error.body), caught.error.body
    equal(len(seen), 1)


def policy_refuses(sdk, calls, kind="PermissionDeniedError", status=403, says="policy"):
    """Each of `calls` takes a client and is answered by nullhop, once and for all. Gives the errors."""
    errors = []
    for number, call in enumerate(calls):
        seen = []
        with sdk.client(seen=seen, max_retries=2, default_headers=headers()) as client:
            try:
                with raises(getattr(sdk.module, kind), status_code=status, says=says) as caught:
                    call(client)
            except Exception as error:
                raise AssertionError(f"call {number}: {error!r:.300}") from error
        equal([response.status_code for response in seen], [status])
        errors.append(caught.error)
    refused()
    return errors
