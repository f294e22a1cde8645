"""E2B's process.Process service, as of envd 0.6.13."""

from __future__ import annotations

import asyncio
import binascii
import signal
from collections.abc import AsyncIterator
from typing import Any

from nodeagent.envd.connect import (
    Call,
    Codec,
    Kind,
    Method,
    Stream,
    deadline,
    envelope,
)
from nodeagent.envd.processes import Event, Process, Subscriber, not_found
from nodeagent.envd.proto import process_pb2 as pb
from nodeagent.envd.state import state_of
from nodeagent.envd.users import default_user, user_error
from nodeagent.errors import (
    AgentError,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unimplemented,
    Unknown,
)
from nodeagent.guest.link import ProcessExit
from nodeagent.sandbox import LiveSandbox, Node

MAX_EVENT_BYTES = {"stdout": 32 * 1024, "stderr": 32 * 1024, "pty": 16 * 1024}
BATCH_BYTES = 256 * 1024  # queued events sent in one go; each stays an envelope of its own
DEFAULT_PTY_SIZE = (80, 24)
_DATA_PREFIX = {name: b'{"event":{"data":{"%b":"' % name.encode() for name in MAX_EVENT_BYTES}
_DATA_SUFFIX = b'"}}}'
_KEEPALIVE: dict[str, Any] = {"event": {"keepalive": {}}}
_SIGNALS = {pb.SIGNAL_SIGTERM: signal.SIGTERM, pb.SIGNAL_SIGKILL: signal.SIGKILL}


async def list_processes(call: Call, request: pb.ListRequest) -> dict[str, Any]:
    processes = [
        {"config": process.config, "pid": process.pid}
        | ({} if process.tag is None else {"tag": process.tag})
        for process in state_of(call.sandbox).processes.running()
    ]
    return {"processes": processes} if processes else {}


async def start(call: Call, request: pb.StartRequest, stream: Stream) -> None:
    """Start a process and stream its output; it outlives the stream, but not its deadline."""
    try:
        timeout_seconds = call.timeout_seconds()
    except InvalidArgument:
        await _check_user(call)  # the user is to be complained about first
        raise
    async with deadline(timeout_seconds):
        # Shielded: a process that was started is always recorded, whatever becomes of its client.
        starting = asyncio.ensure_future(_start_process(call, request, timeout_seconds))
        state_of(call.sandbox).hold(starting)
        try:
            process, subscriber = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_leave)
            raise
        await _stream(call, process, subscriber, stream)


def _leave(starting: asyncio.Future[tuple[Process, Subscriber]]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        process, subscriber = starting.result()
        process.unsubscribe(subscriber)


async def _check_user(call: Call) -> None:
    user = call.asked_user or default_user(call.sandbox)
    try:
        await call.sandbox.link.call("resolve_user", user=user)
    except Unauthenticated as error:
        raise user_error(call.asked_user, user) from error


async def _start_process(
    call: Call, request: pb.StartRequest, timeout_seconds: float | None
) -> tuple[Process, Subscriber]:
    sandbox, spec = call.sandbox, call.sandbox.spec
    wanted = request.process
    has_pty = request.HasField("pty")
    tag = request.tag if request.HasField("tag") else None
    user = call.asked_user or default_user(sandbox)
    config = _config(wanted)
    try:
        channel = await sandbox.link.start_process(
            user=user,
            cmd=wanted.cmd,
            args=list(wanted.args),
            env={**sandbox.env(), **wanted.envs},
            cwd=wanted.cwd if wanted.HasField("cwd") else None,
            default_workdir=spec.default_workdir,
            pty=_pty_size(request.pty) if has_pty else None,
            stdin=not request.HasField("stdin") or request.stdin,
            tag=tag,
            config=config,
            deadline_seconds=timeout_seconds,
        )
    except Unauthenticated as error:
        raise user_error(call.asked_user, user) from error
    process = Process(channel, config, tag, has_pty)
    subscriber = process.subscribe()
    log_end(call.node, sandbox, process)
    state_of(sandbox).processes.add(process)
    fields = {"pid": process.pid, "cmd": wanted.cmd, "user": user}
    call.node.log(sandbox, "info", "Process started", fields)
    return process, subscriber


def log_end(node: Node, sandbox: LiveSandbox, process: Process) -> None:
    """Have the sandbox's log say how the process ended."""

    def on_end(process: Process) -> None:
        how = process.exit.status if process.exit is not None else "connection lost"
        node.log(sandbox, "info", "Process ended", {"pid": process.pid, "status": how})

    process.on_end = on_end


def _config(wanted: pb.ProcessConfig) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if wanted.cmd:
        config["cmd"] = wanted.cmd
    if wanted.args:
        config["args"] = list(wanted.args)
    if wanted.envs:
        config["envs"] = dict(wanted.envs)
    if wanted.HasField("cwd"):
        config["cwd"] = wanted.cwd
    return config


def _pty_size(pty: pb.PTY) -> tuple[int, int]:
    cols, rows = pty.size.cols, pty.size.rows
    if cols > 65535 or rows > 65535:
        raise InvalidArgument(f"invalid terminal size {cols}x{rows}")
    return (cols, rows) if cols and rows else DEFAULT_PTY_SIZE


async def connect(call: Call, request: pb.ConnectRequest, stream: Stream) -> None:
    """Join a process: its output from now on, or the end of one that ended a moment ago."""
    pid, tag = _selected(request.process)
    processes = state_of(call.sandbox).processes
    process = processes.find(pid=pid, tag=tag) or processes.find_ended(pid=pid, tag=tag)
    if process is None:
        raise not_found(pid=pid, tag=tag)
    async with deadline(call.timeout_seconds()):
        if process.exit is not None:
            await stream.send({"event": {"start": {"pid": process.pid}}})
            await stream.send_raw(encode_event(stream.codec, process.exit))
            return
        await _stream(call, process, process.subscribe(), stream)


async def _stream(call: Call, process: Process, subscriber: Subscriber, stream: Stream) -> None:
    keepalive_seconds = call.keepalive_seconds()
    codec = stream.codec
    try:
        await stream.send({"event": {"start": {"pid": process.pid}}})
        while True:
            event = await subscriber.get(keepalive_seconds)
            if event is None:
                await stream.send(_KEEPALIVE)
                continue
            batch: list[bytes] = []
            size = 0
            while event is not None:
                if isinstance(event, AgentError):
                    await stream.send_raw(b"".join(batch))
                    raise event
                batch.append(encode_event(codec, event))
                if isinstance(event, ProcessExit):
                    await stream.send_raw(b"".join(batch))
                    return
                size += len(event[1])
                event = subscriber.get_nowait() if size < BATCH_BYTES else None
            await stream.send_raw(batch[0] if len(batch) == 1 else b"".join(batch))
    finally:
        process.unsubscribe(subscriber)


def encode_event(codec: Codec, event: Event) -> bytes:
    """One or more envelopes for an output or end event."""
    if isinstance(event, ProcessExit):
        return _encode_end(codec, event)
    assert not isinstance(event, AgentError)
    stream, data = event
    limit = MAX_EVENT_BYTES[stream]
    if len(data) <= limit:
        return _encode_data(codec, stream, data)
    pieces = [data[at : at + limit] for at in range(0, len(data), limit)]
    return b"".join(_encode_data(codec, stream, piece) for piece in pieces)


def _encode_data(codec: Codec, stream: str, data: bytes) -> bytes:
    if codec is Codec.JSON:
        # One copy: this line carries every byte a command prints.
        text = binascii.b2a_base64(data, newline=False)
        prefix = _DATA_PREFIX[stream]
        size = len(prefix) + len(text) + len(_DATA_SUFFIX)
        return b"".join((b"\0", size.to_bytes(4, "big"), prefix, text, _DATA_SUFFIX))
    output = pb.ProcessEvent.DataEvent(**{stream: data})
    return envelope(0, pb.StartResponse(event={"data": output}).SerializeToString())


def _encode_end(codec: Codec, end: ProcessExit) -> bytes:
    value: dict[str, Any] = {"status": end.status}
    if end.exit_code:
        value["exitCode"] = end.exit_code
    if end.exited:
        value["exited"] = True
    if end.error is not None:
        value["error"] = end.error
    # Start and Connect answer with messages of the same shape.
    return envelope(0, codec.dump(pb.StartResponse, {"event": {"end": value}}))


async def update(call: Call, request: pb.UpdateRequest) -> dict[str, Any]:
    process = _selected_process(call, request.process)
    if not request.HasField("pty"):
        return {}
    if not process.has_pty:
        raise AgentError("error resizing tty: tty not assigned to process")
    await process.channel.resize(*_pty_size(request.pty))
    return {}


async def send_input(call: Call, request: pb.SendInputRequest) -> dict[str, Any]:
    await _write_input(_selected_process(call, request.process), request.input)
    return {}


async def stream_input(
    call: Call, requests: AsyncIterator[pb.StreamInputRequest]
) -> dict[str, Any]:
    process: Process | None = None
    async for request in requests:
        match request.WhichOneof("event"):
            case "start":
                process = _selected_process(call, request.start.process)
            case "data":
                if process is None:
                    raise InvalidArgument("the first message must be a start event")
                await _write_input(process, request.data.input)
            case "keepalive":
                pass
            case other:
                raise Unimplemented(f"invalid event type {other}")
    return {}


async def _write_input(process: Process, given: pb.ProcessInput) -> None:
    kind = given.WhichOneof("input")
    if kind is None:
        raise Unimplemented("invalid input type <nil>")
    if kind == "stdin" and process.has_pty:
        raise AgentError(
            "error writing to stdin: tty assigned to process — "
            "input should be written to the pty, not the stdin"
        )
    if kind == "pty" and not process.has_pty:
        raise AgentError(
            "error writing to tty: tty not assigned to process — "
            "input should be written to the stdin, not the tty"
        )
    data = given.stdin if kind == "stdin" else given.pty
    if data:
        async with process.input_lock:
            await process.channel.write(data)


async def close_stdin(call: Call, request: pb.CloseStdinRequest) -> dict[str, Any]:
    process = _selected_process(call, request.process)
    if process.has_pty:
        raise Unknown(
            "error closing stdin: cannot close stdin for PTY process — send Ctrl+D (0x04) instead"
        )
    async with process.input_lock:
        await process.channel.close_stdin()
    return {}


async def send_signal(call: Call, request: pb.SendSignalRequest) -> dict[str, Any]:
    process = _selected_process(call, request.process)
    number = _SIGNALS.get(request.signal)
    if number is None:
        known = request.signal in pb.Signal.values()
        name = pb.Signal.Name(request.signal) if known else str(request.signal)
        raise Unimplemented(f"invalid signal: {name}")
    pid, tag = _selected(request.process)
    try:
        await process.channel.signal(number)
    except NotFound as error:
        raise not_found(pid=pid, tag=tag) from error
    return {}


def _selected(selector: pb.ProcessSelector) -> tuple[int | None, str | None]:
    match selector.WhichOneof("selector"):
        case "pid":
            return selector.pid, None
        case "tag":
            return None, selector.tag
        case _:
            raise Unimplemented("invalid process selector <nil>")


def _selected_process(call: Call, selector: pb.ProcessSelector) -> Process:
    pid, tag = _selected(selector)
    process = state_of(call.sandbox).processes.find(pid=pid, tag=tag)
    if process is None:
        raise not_found(pid=pid, tag=tag)
    return process


def methods() -> dict[str, Method]:
    """By request path."""
    unary, server, client = Kind.UNARY, Kind.SERVER_STREAM, Kind.CLIENT_STREAM
    found = {
        "List": Method(unary, pb.ListRequest, pb.ListResponse, list_processes),
        "Connect": Method(server, pb.ConnectRequest, pb.ConnectResponse, connect),
        "Start": Method(server, pb.StartRequest, pb.StartResponse, start),
        "Update": Method(unary, pb.UpdateRequest, pb.UpdateResponse, update),
        "StreamInput": Method(client, pb.StreamInputRequest, pb.StreamInputResponse, stream_input),
        "SendInput": Method(unary, pb.SendInputRequest, pb.SendInputResponse, send_input),
        "SendSignal": Method(unary, pb.SendSignalRequest, pb.SendSignalResponse, send_signal),
        "CloseStdin": Method(unary, pb.CloseStdinRequest, pb.CloseStdinResponse, close_stdin),
    }
    return {f"/process.Process/{name}": method for name, method in found.items()}
