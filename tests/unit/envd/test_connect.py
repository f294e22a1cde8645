"""The Connect protocol itself, and the parsers against arbitrary input."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.envd import connect
from nodeagent.envd.connect import Codec, EnvelopeReader, envelope
from nodeagent.envd.process import encode_event
from nodeagent.envd.proto import process_pb2 as pb
from nodeagent.errors import AgentError, InvalidArgument
from nodeagent.guest.link import ProcessExit
from tests.unit.envd.asgi import make_client, split_envelopes

LIST = "/process.Process/List"
CONNECT = "/process.Process/Connect"
JSON = {"content-type": "application/json"}
STREAM = {"content-type": "application/connect+json"}


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        (LIST, "application/json", 200),
        (LIST, "application/json; charset=utf-8", 200),
        (LIST, "Application/JSON", 200),
        (LIST, "application/connect+json", 415),
        (LIST, "text/plain", 415),
        (LIST, "", 415),
        (CONNECT, "application/json", 415),
        (CONNECT, "application/connect+json", 200),
    ],
)
async def test_content_types(path, content_type, status) -> None:
    client, _, _ = make_client()
    body = b"" if path == LIST else envelope(0, b'{"process":{"pid":1}}')
    answer = await client.ask("POST", path, headers={"content-type": content_type}, body=body)
    assert answer.status == status
    if status == 200:
        assert answer.headers["content-type"] == content_type.partition(";")[0].lower()


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"x"', b'{"path":1}', b'{"path":"\xff"}', b'{"path":"a","path":"b"}']
)
async def test_malformed_json_is_an_invalid_argument(body) -> None:
    client, _, _ = make_client()
    answer = await client.ask("POST", "/filesystem.Filesystem/Stat", headers=JSON, body=body)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_argument")
    assert answer.headers["content-type"] == "application/json"


async def test_json_is_read_as_protobuf_says() -> None:
    client, sandbox, _ = make_client()
    for body in (
        b'{"path":"d1","unknown":[1,{"x":null}]}',
        b'{"path":"d2","depth":"1"}',
        b'{"path":"d3","extra":{}}',
    ):
        answer = await client.ask("POST", "/filesystem.Filesystem/MakeDir", headers=JSON, body=body)
        assert answer.status == 200, body
    message = {"process": {"cmd": "x"}, "pty": None, "tag": None}
    conversation = client.stream("/process.Process/Start", message)
    await conversation.until(conversation.answer.messages)
    channel = next(iter(sandbox.link.processes.values()))
    assert (channel.arguments["pty"], channel.arguments["tag"]) == (None, None)
    for data in ("aGk", "aGk=", "_-8="):  # unpadded, padded, URL-safe
        body = {"process": {"pid": channel.pid}, "input": {"stdin": data}}
        assert (await client.rpc("/process.Process/SendInput", body)).status == 200
    assert channel.written == b"hihi\xff\xef"
    conversation.hang_up()


async def test_gzip_requests() -> None:
    client, _, _ = make_client()
    headers = {**JSON, "content-encoding": "gzip"}
    body = gzip.compress(b'{"path":"d"}')
    path = "/filesystem.Filesystem/MakeDir"
    assert (await client.ask("POST", path, headers=headers, body=body)).status == 200
    answer = await client.ask("POST", path, headers=headers, body=body[:-5])
    assert answer.json()["code"] == "invalid_argument"
    answer = await client.ask("POST", path, headers={**JSON, "content-encoding": "br"}, body=b"")
    assert answer.json()["code"] == "unimplemented"
    headers = {**STREAM, "connect-content-encoding": "gzip"}
    body = envelope(1, gzip.compress(b'{"process":{"pid":77}}'))
    answer = await client.ask("POST", CONNECT, headers=headers, body=body)
    assert answer.end()["error"]["message"] == "process with pid 77 not found"
    answer = await client.ask("POST", CONNECT, headers=STREAM, body=body)
    assert answer.end()["error"]["code"] == "invalid_argument"


async def test_a_gzip_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "MAX_MESSAGE_BYTES", 10_000)
    client, _, _ = make_client()
    headers = {**JSON, "content-encoding": "gzip"}
    body = gzip.compress(b" " * 10_000_000)[:10_000]
    answer = await client.ask("POST", LIST, headers=headers, body=body)
    assert (answer.status, answer.json()["code"]) == (429, "resource_exhausted")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "unimplemented"),
        (b"\0\0", "invalid_argument"),
        (b"\0\0\0\0\x05{}", "invalid_argument"),
        (b"\x02\0\0\0\x02{}", "invalid_argument"),
        (envelope(0, b"{}") * 2, "unimplemented"),
        (b"\0\xff\xff\xff\xff", "resource_exhausted"),
    ],
)
async def test_bad_envelopes_are_end_stream_errors(body, code) -> None:
    client, _, _ = make_client()
    answer = await client.ask("POST", CONNECT, headers=STREAM, body=body)
    assert answer.status == 200
    assert answer.end()["error"]["code"] == code


async def test_unary_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    client, sandbox, _ = make_client()

    async def hang(*_, **__):
        await asyncio.Event().wait()

    sandbox.link.call = hang
    headers = {"connect-timeout-ms": "20"}
    answer = await client.rpc("/filesystem.Filesystem/Stat", {"path": "x"}, headers=headers)
    assert (answer.status, answer.json()) == (
        504,
        {"code": "deadline_exceeded", "message": "context deadline exceeded"},
    )


async def test_a_fault_of_ours_is_internal_and_says_nothing(caplog) -> None:
    client, sandbox, _ = make_client()

    async def fail(*_, **__):
        raise ZeroDivisionError("secret")

    sandbox.link.call = fail
    answer = await client.rpc("/filesystem.Filesystem/Stat", {"path": "x"})
    assert (answer.status, answer.json()) == (
        500,
        {"code": "internal", "message": "internal error"},
    )
    assert "ZeroDivisionError" in caplog.text


# Properties


@given(st.lists(st.binary(max_size=200), max_size=8), st.lists(st.integers(1, 50), max_size=40))
def test_envelopes_survive_any_cutting(payloads: list[bytes], cuts: list[int]) -> None:
    body = b"".join(envelope(0, payload) for payload in payloads)
    reader = EnvelopeReader(None)
    found: list[bytes] = []
    at = 0
    for cut in cuts:
        found += reader.feed(body[at : at + cut])
        at += cut
    found += reader.feed(body[at:])
    reader.finish()
    assert found == payloads


@given(st.binary(max_size=300), st.sampled_from([None, "gzip"]))
def test_arbitrary_bytes_only_raise_our_errors(body: bytes, encoding: str | None) -> None:
    reader = EnvelopeReader(encoding)
    try:
        for payload in reader.feed(body):
            Codec.JSON.load(pb.StartRequest, payload)
            Codec.PROTO.load(pb.StartRequest, payload)
        reader.finish()
    except AgentError:
        pass


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["process", "cmd", "args", "envs", "pty", "size", "cols", "stdin", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_arbitrary_json_is_a_message_or_an_invalid_argument(value) -> None:
    try:
        message = Codec.JSON.load(pb.StartRequest, json.dumps(value).encode())
    except InvalidArgument:
        return
    assert isinstance(message, pb.StartRequest)


@given(st.sampled_from(["stdout", "stderr", "pty"]), st.binary(min_size=1, max_size=100_000))
def test_hand_built_events_are_what_protobuf_would_build(stream: str, data: bytes) -> None:
    from google.protobuf import json_format

    for codec in Codec:
        got = b""
        for flags, payload in split_envelopes(encode_event(codec, (stream, data))):
            assert flags == 0
            if codec is Codec.JSON:
                message = json_format.Parse(payload, pb.StartResponse())
            else:
                message = pb.StartResponse.FromString(payload)
            assert message.event.data.WhichOneof("output") == stream
            got += getattr(message.event.data, stream)
        assert got == data


@given(st.integers(-1, 255), st.booleans())
def test_ends_survive_both_codecs(code: int, exited: bool) -> None:
    end = ProcessExit(code, exited, "exit status 1", None if code == 0 else "exit status 1")
    [(_, payload)] = split_envelopes(encode_event(Codec.PROTO, end))
    found = pb.StartResponse.FromString(payload).event.end
    assert (found.exit_code, found.exited, found.HasField("error")) == (code, exited, code != 0)
