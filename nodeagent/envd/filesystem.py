"""E2B's filesystem.Filesystem service.

The guest does the work and gives entries in protobuf's JSON mapping.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nodeagent.envd.connect import Call, Kind, Method, Stream, deadline
from nodeagent.envd.proto import filesystem_pb2 as pb
from nodeagent.envd.queue import EventQueue
from nodeagent.envd.state import state_of
from nodeagent.envd.users import default_user, user_error
from nodeagent.errors import AgentError, NotFound, QuotaExceeded, Unauthenticated
from nodeagent.guest.link import WatchChannel

MAX_KEPT_WATCHERS = 256  # each is a process in the sandbox
WatchRequest = pb.WatchDirRequest | pb.CreateWatcherRequest


async def _ask(call: Call, op: str, **args: Any) -> dict[str, Any]:
    """One operation of the guest, as the user of the call."""
    user = call.asked_user or default_user(call.sandbox)
    workdir = call.sandbox.spec.default_workdir
    try:
        return await call.sandbox.link.call(op, user=user, default_workdir=workdir, **args)
    except Unauthenticated as error:
        raise user_error(call.asked_user, user) from error


async def stat(call: Call, request: pb.StatRequest) -> dict[str, Any]:
    return {"entry": (await _ask(call, "stat", path=request.path))["entry"]}


async def make_dir(call: Call, request: pb.MakeDirRequest) -> dict[str, Any]:
    return {"entry": (await _ask(call, "make_dir", path=request.path))["entry"]}


async def move(call: Call, request: pb.MoveRequest) -> dict[str, Any]:
    answer = await _ask(call, "move", source=request.source, destination=request.destination)
    return {"entry": answer["entry"]}


async def list_dir(call: Call, request: pb.ListDirRequest) -> dict[str, Any]:
    entries = (await _ask(call, "list_dir", path=request.path, depth=request.depth or 1))["entries"]
    return {"entries": entries} if entries else {}


async def remove(call: Call, request: pb.RemoveRequest) -> dict[str, Any]:
    await _ask(call, "remove", path=request.path)
    return {}


async def _watch(call: Call, request: WatchRequest, *, keep: bool) -> WatchChannel:
    user = call.asked_user or default_user(call.sandbox)
    try:
        return await call.sandbox.link.watch(
            user=user,
            path=request.path,
            default_workdir=call.sandbox.spec.default_workdir,
            recursive=request.recursive,
            include_entry=request.include_entry,
            allow_network_mounts=request.allow_network_mounts,
            keep=keep,
        )
    except Unauthenticated as error:
        raise user_error(call.asked_user, user) from error


async def watch_dir(call: Call, request: pb.WatchDirRequest, stream: Stream) -> None:
    """Stream what happens below a directory until the client leaves."""
    async with deadline(call.timeout_seconds()):
        channel = await _watch(call, request, keep=False)
        queue: EventQueue[dict[str, Any] | AgentError] = EventQueue()
        reading = asyncio.get_running_loop().create_task(_read_events(channel, queue))
        try:
            await stream.send({"start": {}})
            while True:
                event = await queue.get(call.keepalive_seconds())
                if event is None:
                    await stream.send({"keepalive": {}})
                elif isinstance(event, AgentError):
                    raise event
                else:
                    await stream.send({"filesystem": event})
        finally:
            queue.close()
            reading.cancel()
            channel.close()


async def _read_events(
    channel: WatchChannel, queue: EventQueue[dict[str, Any] | AgentError]
) -> None:
    try:
        async for event in channel:
            await queue.put(event)
        await queue.put(AgentError("watcher error: the watcher has ended"))
    except AgentError as error:
        await queue.put(AgentError(f"watcher error: {error.message}"))


async def create_watcher(call: Call, request: pb.CreateWatcherRequest) -> dict[str, Any]:
    watchers = state_of(call.sandbox).watchers
    if len(watchers) >= MAX_KEPT_WATCHERS:
        raise QuotaExceeded(f"a sandbox may have {MAX_KEPT_WATCHERS} watchers; remove one first")
    channel = await _watch(call, request, keep=True)
    watchers[channel.watcher_id] = channel
    return {"watcherId": channel.watcher_id}


async def get_watcher_events(call: Call, request: pb.GetWatcherEventsRequest) -> dict[str, Any]:
    channel = await _kept_watcher(call, request.watcher_id)
    events = await channel.drain()
    return {"events": events} if events else {}


async def remove_watcher(call: Call, request: pb.RemoveWatcherRequest) -> dict[str, Any]:
    watcher_id = request.watcher_id
    channel = state_of(call.sandbox).watchers.pop(watcher_id, None)
    try:
        await call.sandbox.link.call("remove_watcher", watcher_id=watcher_id)
    except NotFound as error:
        raise NotFound(f"watcher with id {watcher_id} not found") from error
    finally:
        if channel is not None:
            channel.close()
    return {}


async def _kept_watcher(call: Call, watcher_id: str) -> WatchChannel:
    watchers = state_of(call.sandbox).watchers
    channel = watchers.get(watcher_id)
    if channel is None:  # made before this agent was started?
        try:
            channel = await call.sandbox.link.attach_watcher(watcher_id)
        except NotFound as error:
            raise NotFound(f"watcher with id {watcher_id} not found") from error
        watchers[watcher_id] = channel
    return channel


def methods() -> dict[str, Method]:
    """By request path."""
    unary = Kind.UNARY
    found = {
        "Stat": Method(unary, pb.StatRequest, pb.StatResponse, stat),
        "MakeDir": Method(unary, pb.MakeDirRequest, pb.MakeDirResponse, make_dir),
        "Move": Method(unary, pb.MoveRequest, pb.MoveResponse, move),
        "ListDir": Method(unary, pb.ListDirRequest, pb.ListDirResponse, list_dir),
        "Remove": Method(unary, pb.RemoveRequest, pb.RemoveResponse, remove),
        "WatchDir": Method(Kind.SERVER_STREAM, pb.WatchDirRequest, pb.WatchDirResponse, watch_dir),
        "CreateWatcher": Method(
            unary, pb.CreateWatcherRequest, pb.CreateWatcherResponse, create_watcher
        ),
        "GetWatcherEvents": Method(
            unary, pb.GetWatcherEventsRequest, pb.GetWatcherEventsResponse, get_watcher_events
        ),
        "RemoveWatcher": Method(
            unary, pb.RemoveWatcherRequest, pb.RemoveWatcherResponse, remove_watcher
        ),
    }
    return {f"/filesystem.Filesystem/{name}": method for name, method in found.items()}
