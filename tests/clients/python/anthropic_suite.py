"""The Anthropic SDK through nullhop: messages, count_tokens, models."""

import json

import anthropic

import questions
import runner
import stainless
from runner import case
from runner import equal

TOOLS = [{"name": "weather", "description": "Weather of a city", "input_schema": questions.TOOL_ARGUMENTS}]


class Sdk(stainless.Sdk):
    upstream, version, id_header = "anthropic", "", "request-id"
    module, sync_class, async_class = anthropic, anthropic.Anthropic, anthropic.AsyncAnthropic

    not_found = "not_found_error"

    def error_kind(self, body):
        return body["error"]["type"]

    def resource(self, client):
        return client.messages

    def question(self, model, content, system=None):
        messages = [{"role": "user", "content": content}]
        return {"model": model, "max_tokens": 64, "messages": messages, **({"system": system} if system else {})}

    def image(self, data):
        return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}

    def text(self, reply):
        return reply.content[0].text

    def delta(self, event):
        return event.type == "content_block_delta" and event.delta.text


@case
def usage(sdk):
    with sdk.client() as client:
        assert sdk.ask(client).usage.input_tokens > 0


@case
def stream_helper(sdk):
    with sdk.client() as client, client.messages.stream(**sdk.question("count-5", "Hi")) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    equal(sdk.text(final), text)
    assert final.stop_reason and final.usage.output_tokens > 0


@case
def beta_messages(sdk):
    with sdk.client() as client:
        assert client.beta.messages.create(**sdk.question("m", "Hi"), betas=["some-beta-2026-01-01"]).content


@case
def tool_call(sdk):
    with sdk.client() as client:
        reply = sdk.ask(client, tools=TOOLS)
        equal(reply.stop_reason, "tool_use")
        call = next(block for block in reply.content if block.type == "tool_use")
        equal((call.name, type(call.input)), ("weather", dict))
        messages = sdk.question("m", "Hi")["messages"] + [
            {"role": "assistant", "content": reply.content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "12 °C"}]},
        ]
        assert sdk.text(client.messages.create(model="m", max_tokens=64, messages=messages))


@case
def tool_call_streamed(sdk):
    with sdk.client() as client, client.messages.stream(**sdk.question("m", "Hi"), tools=TOOLS) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        call = next(block for block in stream.get_final_message().content if block.type == "tool_use")
    assert len(pieces) > 1, "the arguments came in one piece"
    equal((call.name, type(call.input)), ("weather", dict))


@case
def count_tokens(sdk):
    with sdk.client() as client:
        question = sdk.question("m", "Hi", questions.SYSTEM)
        del question["max_tokens"]
        assert client.messages.count_tokens(**question).input_tokens > 0


@case
def models(sdk):
    with sdk.client() as client:
        assert [model.id for model in client.models.list()]


@case(own=True)
def base_with_version(sdk):
    stainless.wrong_base(sdk, "/anthropic/v1", "/anthropic")


@case(own=True)
def policy_refuses(sdk):
    def message(**wish):
        return lambda client: sdk.ask(client, **wish)

    calls = [
        message(extra_body={"container": "container_1"}),
        message(extra_body={"mcp_servers": [{"type": "url", "url": "https://x.example", "name": "x"}]}),
        message(tools=[{"type": "code_execution_20250825", "name": "code_execution"}]),
        message(content=[{"type": "document", "source": {"type": "file", "file_id": "file_1"}}]),
        lambda client: list(sdk.ask(client, stream=True, extra_body={"container": "container_1"})),
        lambda client: client.messages.batches.create(requests=[]),
        lambda client: client.messages.batches.list(),
        lambda client: client.post("/v1/files", cast_to=object, body={}),
    ]
    for error in stainless.policy_refuses(sdk, calls):
        equal(error.body["error"]["type"], "permission_error")


@case(own=True)
def thread_continuation_is_declined(sdk):
    thread = {"type": "continue", "previous_message_id": "msg_1"}
    calls = [lambda client: sdk.ask(client, extra_body={"thread": thread})]
    for error in stainless.policy_refuses(sdk, calls, "BadRequestError", 400, ""):
        equal(error.body["error"]["details"]["error_code"], "thread_unsupported_request")


@case(own=True)
def thread_is_not_begun(sdk):
    with sdk.client() as client:
        raw = sdk.ask(client, script="echo=1", raw=True, extra_body={"thread": {"type": "create"}})
        equal(json.loads(raw.http_response.content), sdk.echoed(client))


runner.main({"h1": [Sdk(http2=False)], "h2": [Sdk(http2=True)]})
