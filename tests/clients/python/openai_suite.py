"""The OpenAI SDK through nullhop: chat completions, Responses, embeddings, models."""

import json

import openai

import questions
import runner
import stainless
from runner import ASKING
from runner import case
from runner import equal
from runner import headers

TOOL = {"name": "weather", "description": "Weather of a city", "parameters": questions.TOOL_ARGUMENTS}
CHAT_TOOLS = [{"type": "function", "function": TOOL}]
RESPONSE_TOOLS = [{"type": "function", "strict": False, **TOOL}]


class Sdk(stainless.Sdk):
    upstream, version, id_header = "openai", "/v1", "x-request-id"
    module, sync_class, async_class = openai, openai.OpenAI, openai.AsyncOpenAI

    not_found = "not_found"

    def error_kind(self, body):
        return body["code"]

    def resource(self, client):
        return client.chat.completions

    def question(self, model, content, system=None):
        messages = [{"role": "system", "content": system}] if system else []
        return {"model": model, "messages": messages + [{"role": "user", "content": content}]}

    def image(self, data):
        return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}}

    def text(self, reply):
        return reply.choices[0].message.content

    def delta(self, event):
        return event.choices and event.choices[0].delta.content


@case
def usage_in_the_stream(sdk):
    with sdk.client() as client:
        events = list(sdk.ask(client, "count-5", stream=True, stream_options={"include_usage": True}))
        assert events[-1].usage.total_tokens > 0


@case
def no_usage_unless_asked(sdk):
    with sdk.client() as client:
        assert not any(event.usage for event in sdk.ask(client, "count-5", stream=True))


@case
def stream_helper(sdk):
    with sdk.client() as client:
        with client.chat.completions.stream(**sdk.question("count-5", "Hi")) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
        equal(sdk.text(stream.get_final_completion()), "".join(deltas))


@case
def tool_call(sdk):
    with sdk.client() as client:
        reply = sdk.ask(client, tools=CHAT_TOOLS)
        equal(reply.choices[0].finish_reason, "tool_calls")
        call = reply.choices[0].message.tool_calls[0]
        equal(call.function.name, "weather")
        messages = sdk.question("m", "Hi")["messages"]
        messages += [reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "12 °C"}]
        assert isinstance(json.loads(call.function.arguments), dict)
        assert sdk.text(client.chat.completions.create(model="m", messages=messages))


@case
def tool_call_streamed(sdk):
    with sdk.client() as client:
        pieces = [
            piece
            for event in sdk.ask(client, stream=True, tools=CHAT_TOOLS)
            for choice in event.choices
            for piece in choice.delta.tool_calls or []
        ]
        equal([piece.function.name for piece in pieces if piece.function.name], ["weather"])
        assert len(pieces) > 1, "the arguments came in one piece"
        assert isinstance(json.loads("".join(piece.function.arguments or "" for piece in pieces)), dict)


@case
def response(sdk):
    with sdk.client() as client:
        reply = client.responses.create(model="m", input="Hi", instructions=questions.SYSTEM)
        assert reply.output_text and reply.usage.total_tokens > 0


@case
def response_streamed(sdk):
    with sdk.client() as client:
        events = list(client.responses.create(model="m", input="Hi", stream=True))
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        equal(events[-1].type, "response.completed")
        equal(events[-1].response.output_text, "".join(deltas))


@case
def response_tool_call(sdk):
    with sdk.client() as client:
        reply = client.responses.create(model="m", input="Hi", tools=RESPONSE_TOOLS)
        call = next(item for item in reply.output if item.type == "function_call")
        equal((call.name, type(json.loads(call.arguments))), ("weather", dict))


@case
def embeddings(sdk):
    with sdk.client() as client:
        reply = client.embeddings.create(model="m", input=["Hi", questions.SYSTEM])
        assert all(isinstance(number, float) for number in reply.data[0].embedding) and reply.data[0].embedding


@case
def models(sdk):
    with sdk.client() as client:
        assert [model.id for model in client.models.list()]


# Streams of all kinds: of words, of one word, of a tool's call.
STREAMS = [{"model": "m"}, {"model": "count-1"}, {"model": "count-30"}, {"model": "m", "tools": CHAT_TOOLS}]
STREAMS += [{"model": "m", "stream_options": {"include_obfuscation": False}}]


def asking(sdk):
    """The base URL of the nullhop that asks for usage."""
    return {"base_url": f"{ASKING}/{sdk.upstream}{sdk.version}"}


def chunks(sdk, **options):
    """What a client sees of each stream, null and missing told apart."""
    with sdk.client(**options) as client:
        return [
            [event.model_dump(exclude_unset=True) for event in sdk.ask(client, stream=True, **stream)]
            for stream in STREAMS
        ]


@case(own=True)
def usage_asked_for_is_hidden(sdk):
    equal(chunks(sdk, **asking(sdk)), chunks(sdk))


@case(own=True)
def usage_asked_for_is_hidden_in_every_line(sdk):
    def lines(**options):
        with sdk.client(**options) as client:
            create = sdk.resource(client).with_streaming_response.create
            with create(**sdk.question("count-5", "Hi"), stream=True) as response:
                return list(response.iter_lines())

    equal(lines(**asking(sdk)), lines())


@case(own=True)
def first_choices_are_read_blindly(sdk):
    with sdk.client(**asking(sdk)) as client:
        for stream in STREAMS:
            for event in sdk.ask(client, stream=True, **stream):
                assert event.choices[0].delta is not None
                assert event.usage is None


@case(own=True)
async def usage_asked_for_is_hidden_from_tasks(sdk):
    async with sdk.async_client(**asking(sdk)) as client:
        events = [event async for event in await sdk.ask(client, "count-7", stream=True)]
    equal([bool(sdk.delta(event)) for event in events].count(True), 7)
    assert not any(event.usage or not event.choices for event in events)


@case(own=True)
def who_asks_for_usage_gets_it(sdk):
    def events(**options):
        with sdk.client(**options) as client:
            stream = sdk.ask(client, "count-5", stream=True, stream_options={"include_usage": True})
            return [event.model_dump(exclude_unset=True) for event in stream]

    seen = events(**asking(sdk))
    assert seen[-1]["usage"]["total_tokens"] > 0
    equal(seen, events())


@case(own=True)
def stream_helper_of_the_one_that_asks(sdk):
    with sdk.client(**asking(sdk)) as client:
        with client.chat.completions.stream(**sdk.question("count-5", "Hi")) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
        equal(sdk.text(final), "".join(deltas))
        assert final.usage is None


@case(own=True)
def policy_refuses(sdk):
    def response(**wish):
        return lambda client: client.responses.create(model="m", input="Hi", **wish)

    calls = [
        response(store=True),
        response(background=True),
        response(previous_response_id="resp_1"),
        response(conversation="conv_1"),
        response(prompt={"id": "pmpt_1"}),
        response(tools=[{"type": "file_search", "vector_store_ids": ["vs_1"]}]),
        response(tools=[{"type": "code_interpreter", "container": {"type": "auto"}}]),
        lambda client: sdk.ask(client, store=True),
        lambda client: list(sdk.ask(client, store=True, stream=True)),
        lambda client: client.conversations.create(),
        lambda client: client.vector_stores.create(name="x"),
        lambda client: client.files.create(file=b"x", purpose="assistants"),
        lambda client: client.batches.create(
            input_file_id="file_1", endpoint="/v1/chat/completions", completion_window="24h"
        ),
        lambda client: client.responses.retrieve("resp_1"),
    ]
    for error in stainless.policy_refuses(sdk, calls):
        equal(error.code, "policy_refused")


@case(own=True)
def response_is_not_stored(sdk):
    with sdk.client() as client:
        create = client.responses.with_raw_response.create
        got = create(model="m", input="Hi", extra_headers=headers("echo=1")).http_response.content
    equal(json.loads(got), {"model": "m", "input": "Hi", "store": False})


@case(own=True)
def base_without_version(sdk):
    stainless.wrong_base(sdk, "/openai", "/openai/v1")


runner.main({"h1": [Sdk(http2=False)], "h2": [Sdk(http2=True)]})
