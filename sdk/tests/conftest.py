from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sandlot

_spec = importlib.util.spec_from_file_location(
    "fake_server", Path(__file__).parent / "fake_server.py"
)
fake_server = importlib.util.module_from_spec(_spec)
sys.modules["fake_server"] = fake_server
_spec.loader.exec_module(fake_server)


class Awaited:
    """The sync client with the async one's manners, so that one test body covers both twins."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if inspect.ismethod(value):

            async def call(*args: Any, **kwargs: Any) -> Any:
                return _wrap(value(*args, **kwargs))

            return call
        return _wrap(value)

    async def __aenter__(self) -> Awaited:
        self._target.__enter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._target.__exit__(*exc_info)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self._target:
            yield item


def _wrap(value: Any) -> Any:
    return Awaited(value) if type(value).__module__.startswith("sandlot._sync") else value


@pytest.fixture
def server() -> Iterator[Any]:
    with fake_server.serve() as fake:
        yield fake


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class `Sandbox` or `AsyncSandbox`, pointed at the fake server by the environment."""
    monkeypatch.setenv("SANDLOT_API_KEY", "e2b_00")
    monkeypatch.setenv("SANDLOT_API_URL", server.url)
    monkeypatch.setenv("SANDLOT_SANDBOX_URL", server.url)
    return sandlot.AsyncSandbox if request.param == "async" else Awaited(sandlot.Sandbox)
