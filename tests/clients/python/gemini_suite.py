"""The Google Gen AI SDK through nullhop: generate, stream, count, embed."""

import asyncio
import json
import time

import httpx2
from google import genai
from google.genai import errors
from google.genai import types

import questions
import runner
from runner import BASE
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

WEATHER = types.FunctionDeclaration(name="weather", description="Weather", parameters_json_schema=questions.TOOL_ARGUMENTS)


def connect(base_url=None, **options):
    http_options = types.HttpOptions(base_url=base_url or base("gemini"), timeout=9000)
    return genai.Client(api_key=runner.KEY, vertexai=False, http_options=http_options.model_copy(update=options))


def config(script=None, **options):
    return types.GenerateContentConfig(http_options=types.HttpOptions(headers=headers(script)), **options)


def ask(client, model="m", contents="Hi", **options):
    return client.models.generate_content(model=model, contents=contents, config=config(**options))


def ask_stream(client, model="m", contents="Hi", **options):
    return client.models.generate_content_stream(model=model, contents=contents, config=config(**options))


def echoed(client, **question):
    """The request body as the provider received it."""
    return json.loads(ask(client, script="echo=1", should_return_http_response=True, **question).sdk_http_response.body)


@case
def unary():
    with connect() as client:
        reply = ask(client)
        assert reply.text and reply.usage_metadata.total_token_count > 0


@case
def stream():
    with connect() as client:
        chunks = list(ask_stream(client, "count-20"))
        equal(len([chunk for chunk in chunks if chunk.text]), 20)
        assert chunks[-1].usage_metadata.total_token_count > 0


@case
def stream_arrives_as_it_is_sent():
    with connect() as client:
        arrives_in_steps(ask_stream(client, "slow"))


@case
def broken_stream_is_an_error():
    with connect() as client, raises(httpx2.TransportError):
        list(ask_stream(client, "count-200", script="reset_after=3000"))


@case
def cancel():
    with connect() as client:
        chunks = ask_stream(client, "slow")
        equal(len([chunk for chunk, _ in zip(chunks, range(3))]), 3)
        chunks.close()
        left()


@case
def chat_session():
    with connect() as client:
        chat = client.chats.create(model="m", config=types.GenerateContentConfig(system_instruction=questions.SYSTEM))
        assert chat.send_message("Hi").text
        assert "".join(chunk.text or "" for chunk in chat.send_message_stream("Grüezi"))
        equal([turn.role for turn in chat.get_history()][:3], ["user", "model", "user"])


@case
def system_prompt_arrives_unchanged():
    with connect() as client:
        got = echoed(client, system_instruction=questions.SYSTEM)
        equal(got["systemInstruction"]["parts"][0]["text"], questions.SYSTEM)


def image(size):
    contents = ["What is this?", types.Part.from_bytes(data=questions.image(size), mime_type="image/png")]
    hooks = {"request": [lambda request: sent(request.content)]}
    with connect(client_args={"event_hooks": hooks}) as client:
        assert ask(client, contents=contents).text


@case
def image_1_mb():
    image(1_000_000)


@case(seconds=20)
def image_20_mb():
    image(20_000_000)


@case
def function_call():
    with connect() as client:
        tools = [types.Tool(function_declarations=[WEATHER])]
        for reply in (ask(client, tools=tools), *ask_stream(client, tools=tools)):
            call = reply.function_calls[0]
            equal((call.name, type(call.args)), ("weather", dict))
        answer = types.Part.from_function_response(name="weather", response={"temperature": "12 °C"})
        contents = [types.UserContent("Hi"), reply.candidates[0].content, types.Content(role="user", parts=[answer])]
        assert ask(client, contents=contents).text


@case
def count_tokens():
    with connect() as client:
        assert client.models.count_tokens(model="m", contents=questions.SYSTEM).total_tokens > 0


@case
def embeddings():
    with connect() as client:
        assert client.models.embed_content(model="m", contents="Hi").embeddings[0].values


@case
def models():
    with connect() as client:
        assert [model.name for model in client.models.list()]


def error_case(status, kind):
    def error():
        with connect() as client:
            with raises(kind, code=status) as caught:
                ask(client, f"err-{status}")
            assert caught.error.status and caught.error.message
            with raises(kind, code=status):
                list(ask_stream(client, f"err-{status}"))

    error.__name__ = f"error_{status}"
    return error


for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 529):
    case(error_case(status, errors.ClientError if status < 500 else errors.ServerError))


@case
def headers_pass():
    with connect() as client:
        headers = ask(client, script="header=x-canary:41").sdk_http_response.headers
        equal(headers["x-canary"], "41")


@case
def timeout_before_the_head():
    with connect(timeout=500) as client:
        started = time.monotonic()
        with raises(httpx2.TimeoutException):
            ask(client, script="head_delay_ms=5000")
        assert time.monotonic() - started < 2


@case(seconds=25)
async def parallel_streams():
    async def one(client, count):
        chunks = await client.models.generate_content_stream(model=f"count-{count}", contents="Hi")
        return len([chunk async for chunk in chunks if chunk.text])

    counts = range(1, STREAMS + 1)
    async with connect(timeout=20000).aio as client:
        equal(await asyncio.gather(*(one(client, count) for count in counts)), list(counts))


@case
async def live_socket():
    # The provider echoes what it is sent; the SDK takes any JSON for the answer to its set-up message.
    async with connect(headers=headers()).aio as client:
        async with client.live.connect(model="m") as session:
            await session.send_client_content(turns=types.UserContent("höi"))
            echo = json.loads(await session._ws.recv())
            equal(echo["client_content"]["turns"][0]["parts"][0]["text"], "höi")


@case(own=True)
def unknown_route():
    with connect(base_url=BASE + "/nowhere") as client, raises(errors.ClientError, code=404, status="NOT_FOUND"):
        ask(client)


@case(own=True, seconds=20)
def body_over_the_limit():
    with connect() as client, raises(errors.ClientError, code=413, status="INVALID_ARGUMENT"):
        ask(client, contents="x" * (33 << 20))


@case(own=True)
def policy_refuses():
    calls = [
        lambda client: ask(client, tools=[types.Tool(google_search=types.GoogleSearch())]),
        lambda client: list(ask_stream(client, tools=[types.Tool(google_search=types.GoogleSearch())])),
        lambda client: ask(client, cached_content="cachedContents/x"),
        lambda client: ask(client, contents=types.Part.from_uri(file_uri="https://x.example/f", mime_type="text/plain")),
        lambda client: client.caches.create(model="models/m", config=types.CreateCachedContentConfig(contents="Hi")),
        lambda client: list(client.files.list()),
    ]
    with connect(headers=headers()) as client:
        for call in calls:
            with raises(errors.ClientError, says="policy", code=403, status="PERMISSION_DENIED"):
                call(client)
    refused()


runner.main()
