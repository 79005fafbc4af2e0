"""Keys of nullhop's own, as the SDKs see them: served with the operator's key, refused, told to wait.

`NULLHOP_KEYS` is a JSON object of keys by name. Those that hold a limit are there once for each SDK and HTTP version, as
`LIMIT/UPSTREAM/VERSION`. Beside the lines of runner.py, `# reached CASE COUNT` tells how many whole requests of a case the
provider has to have seen.
"""

import json
import os
import threading
import time

import anthropic
import openai
from google import genai
from google.genai import errors
from google.genai import types

import runner
from runner import base
from runner import case
from runner import equal
from runner import headers
from runner import raises

KEYS = json.loads(os.environ["NULLHOP_KEYS"])
# What a caller brings where it pays itself.
CALLERS = "sk-callers-own-key-at-the-provider"
# The header for a key of nullhop's beside the provider's.
BESIDE = "x-nullhop-key"


def reached(count):
    print(f"# reached {runner.running} {count}", flush=True)


class Sdk:
    """One SDK over one HTTP version."""

    upstream = version_name = None
    # Whether it asks again when, and only when, it is told to.
    obedient = True

    def key(self, limit):
        return KEYS[f"{limit}/{self.upstream}/{self.version_name}"]

    # What a subclass fills in. `seen` is a list for all responses, those before a retry too.
    def client(self, key, seen=None, retries=0, **more): ...
    def ask(self, client, model="m", script=None): ...
    def stream(self, client, model="m"): ...
    def plain(self, client): ...
    def text(self, reply): ...
    def refused(self, status, says=""): ...
    def limits(self, client): ...


class Stainless(Sdk):
    """What the OpenAI and the Anthropic SDK have in common."""

    module = sync_class = None
    version = ""

    def __init__(self, http2):
        self.http2 = http2
        self.version_name = "h2" if http2 else "h1"

    def client(self, key, seen=None, retries=0, **more):
        hooks = {} if seen is None else {"response": [seen.append]}
        return self.sync_class(
            base_url=base(self.upstream, self.version),
            api_key=key,
            max_retries=retries,
            timeout=20,
            http_client=self.module.DefaultHttpxClient(http2=self.http2, event_hooks=hooks),
            default_headers={**headers(), **more},
        )

    def question(self, model):
        return {"model": model, "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}

    def ask(self, client, model="m", script=None):
        return self.resource(client).create(**self.question(model), extra_headers=headers(script))

    def stream(self, client, model="m"):
        return self.resource(client).create(**self.question(model), stream=True)

    def plain(self, client):
        """A stream as it came."""
        create = self.resource(client).with_streaming_response.create
        with create(**self.question("count-5"), stream=True) as response:
            return list(response.iter_lines())

    def refused(self, status, says=""):
        names = {401: "AuthenticationError", 403: "PermissionDeniedError", 429: "RateLimitError"}
        return raises(getattr(self.module, names[status]), says, status_code=status)

    def limits(self, client):
        got = self.resource(client).with_raw_response.create(**self.question("m")).headers
        return [got.get(name) for name in self.limit_headers]


class OpenAi(Stainless):
    upstream, version, module, sync_class = "openai", "/v1", openai, openai.OpenAI
    limit_headers = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests")

    def resource(self, client):
        return client.chat.completions

    def text(self, reply):
        return reply.choices[0].message.content

    def spent(self, error):
        equal((error.code, error.type), ("insufficient_quota", "insufficient_quota"))


class Anthropic(Stainless):
    upstream, module, sync_class = "anthropic", anthropic, anthropic.Anthropic
    limit_headers = ("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-remaining")

    def resource(self, client):
        return client.messages

    def text(self, reply):
        return reply.content[0].text

    def spent(self, error):
        equal(error.body["error"]["type"], "rate_limit_error")


class Gemini(Sdk):
    # It has a rhythm of its own, whatever an answer says.
    upstream, version_name, obedient = "gemini", "h1", False

    def client(self, key, seen=None, retries=0, **more):
        hooks = {} if seen is None else {"response": [seen.append]}
        options = types.HttpOptions(
            base_url=base("gemini"),
            timeout=20_000,
            headers={**headers(), **more},
            client_args={"event_hooks": hooks},
            retry_options=types.HttpRetryOptions(attempts=retries + 1, initial_delay=1, jitter=0) if retries else None,
        )
        return genai.Client(api_key=key, vertexai=False, http_options=options)

    def config(self, script=None):
        return types.GenerateContentConfig(
            max_output_tokens=10, http_options=types.HttpOptions(headers=headers(script))
        )

    def ask(self, client, model="m", script=None):
        return client.models.generate_content(model=model, contents="Hi", config=self.config(script))

    def stream(self, client, model="m"):
        return client.models.generate_content_stream(model=model, contents="Hi", config=self.config())

    def plain(self, client):
        return [chunk.model_dump(exclude={"sdk_http_response"}) for chunk in self.stream(client, "count-5")]

    def text(self, reply):
        return reply.text

    def refused(self, status, says=""):
        words = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 429: "RESOURCE_EXHAUSTED"}
        return raises(errors.ClientError, says, code=status, status=words[status])

    def limits(self, client):
        return None

    def spent(self, error):
        pass


def statuses(seen):
    return [response.status_code for response in seen]


@case
def managed_unary(sdk):
    with sdk.client(KEYS["free"]) as client:
        assert sdk.text(sdk.ask(client))
    reached(1)


@case
def managed_stream(sdk):
    with sdk.client(KEYS["free"]) as client:
        assert len(list(sdk.stream(client, "count-20"))) >= 20


@case
def managed_key_in_its_own_header(sdk):
    with sdk.client("placeholder", **{BESIDE: KEYS["free"]}) as client:
        assert sdk.text(sdk.ask(client))
    reached(1)


@case
def passed(sdk):
    with sdk.client(CALLERS) as client:
        assert sdk.text(sdk.ask(client))
        assert len(list(sdk.stream(client, "count-20"))) >= 20
    reached(2)


@case
def passed_with_a_key_beside(sdk):
    with sdk.client(CALLERS, **{BESIDE: sdk.key("beside")}) as client:
        assert sdk.text(sdk.ask(client))
        assert len(list(sdk.stream(client, "count-20"))) >= 20
        with sdk.refused(429, "`requests`"):
            sdk.ask(client)
    reached(2)


@case
def streams_are_what_they_are_without_a_key(sdk):
    with sdk.client(KEYS["free"]) as managed, sdk.client(CALLERS) as without:
        got, wanted = sdk.plain(managed), sdk.plain(without)
    assert len(wanted) > 5
    equal(got, wanted)


@case
def wrong_keys(sdk):
    whole = KEYS["free"]
    wrong = ("nhk_wrong", whole[:-1] + ("a" if whole[-1] != "a" else "b"), KEYS["stranger"], KEYS["revoked"])
    for key in wrong:
        seen = []
        with sdk.client(key, seen, retries=2) as client:
            with sdk.refused(401):
                sdk.ask(client)
            with sdk.refused(401):
                list(sdk.stream(client))
        equal(statuses(seen), [401, 401])
    with sdk.client(CALLERS, **{BESIDE: "nhk_wrong"}) as client, sdk.refused(401):
        sdk.ask(client)
    # Ours for pass-through, in the place of the provider's.
    with sdk.client(sdk.key("beside")) as client, sdk.refused(401):
        sdk.ask(client)
    reached(0)


@case
def not_for_this_upstream(sdk):
    seen = []
    with sdk.client(KEYS["elsewhere"], seen, retries=2) as client, sdk.refused(403):
        sdk.ask(client)
    equal(statuses(seen), [403])
    reached(0)


@case
def not_for_this_model(sdk):
    seen = []
    with sdk.client(KEYS["narrow"], seen, retries=2) as client:
        with sdk.refused(403):
            sdk.ask(client)
        with sdk.refused(403):
            list(sdk.stream(client))
        equal(statuses(seen), [403, 403])
        assert sdk.text(sdk.ask(client, "fine-1"))
    reached(1)


@case(seconds=30)
def rate_is_waited_for(sdk):
    seen = []
    with sdk.client(sdk.key("rate"), seen, retries=1 if sdk.obedient else 4) as client:
        started = time.monotonic()
        assert sdk.text(sdk.ask(client)) and sdk.text(sdk.ask(client))
        took = time.monotonic() - started
    # One request in four seconds.
    assert took >= 4, f"served again after {took:.2f} s"
    if sdk.obedient:
        equal(statuses(seen), [200, 429, 200])
    else:
        equal([status for status in statuses(seen) if status != 429], [200, 200])
        assert statuses(seen)[1] == 429
    reached(2)


@case
def tokens_that_are_used_up(sdk):
    seen = []
    with sdk.client(sdk.key("tokens"), seen, retries=2 if sdk.obedient else 0) as client:
        assert sdk.text(sdk.ask(client))
        # Free again in many minutes: no SDK waits that long, and each is told not to.
        with sdk.refused(429, "`output_tokens`"):
            sdk.ask(client)
    equal(statuses(seen), [200, 429])
    reached(1)


@case
def budget_that_is_used_up(sdk):
    seen = []
    with sdk.client(sdk.key("budget"), seen, retries=2 if sdk.obedient else 0) as client:
        assert sdk.text(sdk.ask(client))
        with sdk.refused(429, "`tokens_per_day`") as caught:
            sdk.ask(client)
        sdk.spent(caught.error)
    equal(statuses(seen), [200, 429])
    reached(1)


@case(seconds=40)
def a_place_is_waited_for(sdk):
    key = sdk.key("place")
    holder = sdk.client(key)
    events = sdk.stream(holder, "slow")
    next(iter(events))
    with sdk.client(key) as client, sdk.refused(429, "`concurrency`"):
        sdk.ask(client)
    replies = []

    def ask():
        with sdk.client(key, seen, retries=20 if sdk.obedient else 4) as client:
            replies.append(sdk.ask(client))

    seen = []
    asking = threading.Thread(target=ask)
    asking.start()
    while not seen:
        time.sleep(0.01)
    events.close()
    holder.close()
    asking.join()
    assert sdk.text(replies[0])
    assert set(statuses(seen)[:-1]) == {429} and statuses(seen)[-1] == 200, statuses(seen)


@case
def what_is_left_is_told(sdk):
    if sdk.upstream == "gemini":
        return
    with sdk.client(sdk.key("left")) as client:
        equal([sdk.limits(client) for _ in range(2)], [["5", "4"], ["5", "3"]])
    with sdk.client(KEYS["free"]) as client:
        equal(sdk.limits(client), [None, None])


@case
def managed_usage_is_asked_for_and_hidden(sdk):
    if sdk.upstream != "openai":
        return
    with sdk.client(KEYS["free"]) as client:
        create = client.chat.completions.with_streaming_response.create
        with create(**sdk.question("m"), stream=True, extra_headers=headers("echo=1")) as response:
            got = json.loads(response.read())
        equal(got, {**sdk.question("m"), "stream": True, "stream_options": {"include_usage": True}})
        assert not any(event.usage or not event.choices for event in sdk.stream(client, "count-5"))
        events = list(
            client.chat.completions.create(
                **sdk.question("count-5"), stream=True, stream_options={"include_usage": True}
            )
        )
        assert events[-1].usage.total_tokens > 0


@case
def managed_by_other_calls(sdk):
    if sdk.upstream == "gemini":
        with sdk.client(KEYS["free"]) as client:
            assert client.models.embed_content(model="m", contents="Hi").embeddings[0].values
            assert client.models.count_tokens(model="m", contents="Hi").total_tokens > 0
        return
    with sdk.client(KEYS["free"]) as client:
        assert [model.id for model in client.models.list()]
        if sdk.upstream == "anthropic":
            assert client.messages.count_tokens(model="m", messages=[{"role": "user", "content": "Hi"}]).input_tokens
            return
        assert client.responses.create(model="m", input="Hi").output_text
        events = list(client.responses.create(model="m", input="Hi", stream=True))
        equal(events[-1].type, "response.completed")
        assert client.embeddings.create(model="m", input="Hi").data[0].embedding


@case
def managed_as_a_bearer_token(sdk):
    # As Claude Code sends it.
    if sdk.upstream != "anthropic":
        return
    with anthropic.Anthropic(
        base_url=base("anthropic"), auth_token=KEYS["free"], max_retries=0, default_headers=headers()
    ) as client:
        assert sdk.text(sdk.ask(client))


async def socket(connect, response):
    """Two answers an hour; the third is refused, and the socket goes on."""
    async with connect as connection:
        for _ in range(2):
            await connection.response.create(**response)
            equal((await connection.recv()).type, "response.create")
        for _ in range(2):
            await connection.response.create(**response)
            event = await connection.recv()
            equal(event.type, "error")
            equal(event.error.type, "rate_limit_error")
        await connection.send({"type": "response.cancel"})
        equal((await connection.recv()).type, "response.cancel")


@case
async def managed_realtime_socket(sdk):
    if sdk.upstream != "openai" or sdk.http2:
        return
    key = sdk.key("realtime")
    async with openai.AsyncOpenAI(base_url=base("openai", "/v1"), api_key=key) as client:
        await socket(client.realtime.connect(model="x", extra_headers=headers()), {})


@case
async def managed_responses_socket(sdk):
    if sdk.upstream != "openai" or sdk.http2:
        return
    key = sdk.key("responses")
    async with openai.AsyncOpenAI(base_url=base("openai", "/v1"), api_key=key) as client:
        await socket(client.responses.connect(extra_headers=headers()), {"model": "m", "input": "Hi"})


runner.main(
    {
        "openai-h1": [OpenAi(http2=False)],
        "openai-h2": [OpenAi(http2=True)],
        "anthropic-h1": [Anthropic(http2=False)],
        "anthropic-h2": [Anthropic(http2=True)],
        "gemini": [Gemini()],
    }
)
