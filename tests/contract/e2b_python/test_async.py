from __future__ import annotations

import asyncio

import pytest
from e2b import AsyncSandbox, CommandExitException


async def test_the_async_client_does_the_same() -> None:
    sandbox = await AsyncSandbox.create(timeout=60, metadata={"kind": "async"})
    try:
        assert await sandbox.is_running()
        await sandbox.files.write("/tmp/a", "written")
        seen: list[str] = []
        result = await sandbox.commands.run("cat /tmp/a; echo", on_stdout=seen.append)
        assert result.stdout == "".join(seen) == "written\n"
        with pytest.raises(CommandExitException):
            await sandbox.commands.run("exit 3")
        events: list[str] = []
        first = asyncio.Event()

        def on_event(event: object) -> None:
            events.append(event.name)  # type: ignore[attr-defined]
            first.set()

        watch = await sandbox.files.watch_dir("/tmp", on_event=on_event)
        await sandbox.files.write("/tmp/b", "x")
        await asyncio.wait_for(first.wait(), 10)
        assert events[0] == "b"
        await watch.stop()
    finally:
        await sandbox.kill()
    assert not await sandbox.is_running()


async def test_many_sandboxes_are_created_at_once() -> None:
    made = await asyncio.gather(*(AsyncSandbox.create(timeout=60) for _ in range(5)))
    try:
        results = await asyncio.gather(
            *(sandbox.commands.run(f"echo {n}") for n, sandbox in enumerate(made))
        )
        assert [result.stdout for result in results] == [f"{n}\n" for n in range(5)]
        assert len({sandbox.sandbox_id for sandbox in made}) == 5
    finally:
        await asyncio.gather(*(sandbox.kill() for sandbox in made))
