"""The OpenAI SDK through nullhop: chat completions, Responses, embeddings, models."""

import json

import openai

import questions
import runner
import stainless
from runner import case
from runner import equal

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


@case(own=True)
def base_without_version(sdk):
    stainless.wrong_base(sdk, "/openai", "/openai/v1")


runner.main({"h1": [Sdk(http2=False)], "h2": [Sdk(http2=True)]})
