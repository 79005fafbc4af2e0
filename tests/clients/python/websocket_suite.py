"""WebSockets through nullhop, with the library that the SDKs use, and with the SDK itself."""

import asyncio
import time
from socket import SHUT_RDWR

import openai
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed
from websockets.exceptions import ConnectionClosedError
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import runner
from runner import FULL
from runner import base
from runner import case
from runner import equal
from runner import headers
from runner import left
from runner import raises

SIZES = (1, 125, 126, 65_535, 65_536, 1_000_000)


def options(script=None, **more):
    additional = {"authorization": f"Bearer {runner.KEY}", **headers(script)}
    return {"additional_headers": additional, "max_size": None, "open_timeout": 5, "close_timeout": 3, **more}


def address(upstream="openai", path="/v1/realtime?model=x"):
    return base(upstream).replace("https:", "wss:", 1) + path


def dial(script=None, **more):
    return connect(address(), **options(script, **more))


@case
def echo_text():
    with dial() as socket:
        for size in SIZES:
            text = ("ö🦀x" * size)[:size]
            socket.send(text)
            if socket.recv(timeout=5) != text:
                raise AssertionError(f"{size} characters came back changed")


@case
def echo_binary():
    with dial() as socket:
        for size in SIZES:
            data = (bytes(range(256)) * (size // 256 + 1))[:size]
            socket.send(data)
            if socket.recv(timeout=5) != data:
                raise AssertionError(f"{size} bytes came back changed")


@case
def empty_message():
    with dial() as socket:
        socket.send("")
        equal(socket.recv(timeout=5), "")


@case
def fragments():
    with dial() as socket:
        socket.send(["one ", "", "two ", "three"])
        equal(socket.recv(timeout=5), "one two three")


@case
def ping():
    with dial() as socket:
        assert socket.ping(b"payload").wait(3), "no pong"
        socket.send("after")
        equal(socket.recv(timeout=5), "after")


@case
def ping_from_the_provider():
    # The library answers with a pong by itself; the connection stays of use.
    with dial("ws=ping") as socket:
        socket.send("after")
        equal(socket.recv(timeout=5), "after")


@case
def many_messages_in_order():
    with dial() as socket:
        for number in range(500):
            socket.send(str(number))
        equal([socket.recv(timeout=5) for _ in range(500)], [str(number) for number in range(500)])


@case
def close_by_the_client():
    for code in (1000, 1001, 3000, 4001):
        with dial() as socket:
            socket.close(code, "enough")
            equal(socket.protocol.close_rcvd.code, code)


@case
def close_by_the_provider():
    for code in (1000, 1008, 1011, 4002):
        with dial(f"ws=close{code}") as socket:
            with raises(ConnectionClosed) as caught:
                socket.recv(timeout=5)
            equal(caught.error.rcvd.code, code)


def lost_connection(script):
    with dial(script) as socket:
        with raises(ConnectionClosedError) as caught:
            socket.send("Hi")
            socket.recv(timeout=5)
        equal(caught.error.rcvd, None)


@case
def reset_by_the_provider():
    lost_connection("ws=reset")


@case
def fin_by_the_provider():
    lost_connection("ws=fin")


@case
def leave_without_a_word():
    socket = dial()
    socket.socket.shutdown(SHUT_RDWR)
    left()


@case
def silence_is_allowed():
    with dial(ping_interval=None) as socket:
        time.sleep(2)
        socket.send("still here")
        equal(socket.recv(timeout=5), "still here")


@case
def compression_is_not_agreed():
    with dial(compression="deflate") as socket:
        equal(socket.protocol.extensions, [])
        equal(socket.response.headers.get("sec-websocket-extensions"), None)


@case
def refusal_by_the_provider():
    with raises(InvalidStatus) as caught:
        dial("ws=refuse;status=426")
    equal(caught.error.response.status_code, 426)


@case(own=True)
def not_served_here():
    with raises(InvalidStatus) as caught:
        connect(address("anthropic", "/v1/messages"), **options())
    equal(caught.error.response.status_code, 426)


@case(seconds=20)
async def parallel_sockets():
    async def one(number):
        async with connect_async(address(), **options()) as socket:
            for turn in range(20):
                await socket.send(f"{number}.{turn}")
                equal(await socket.recv(), f"{number}.{turn}")

    await asyncio.gather(*(one(number) for number in range(100 if FULL else 20)))


def sdk():
    return openai.OpenAI(base_url=base("openai", "/v1"), api_key=runner.KEY, max_retries=0)


@case
def sdk_realtime():
    with sdk() as client, client.realtime.connect(model="x") as connection:
        connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "höi"}]}
        )
        event = connection.recv()
        equal(event.type, "conversation.item.create")
        equal(event.item["content"][0]["text"], "höi")


@case
async def sdk_realtime_async():
    async with openai.AsyncOpenAI(base_url=base("openai", "/v1"), api_key=runner.KEY) as client:
        async with client.realtime.connect(model="x") as connection:
            await connection.response.create(response={"instructions": "höi"})
            equal((await connection.recv()).type, "response.create")


@case
def sdk_responses_socket():
    with sdk() as client, client.responses.connect() as connection:
        connection.response.create(model="m", input="höi")
        equal(connection.recv().type, "response.create")


runner.main()
