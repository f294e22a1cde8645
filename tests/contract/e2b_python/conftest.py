"""Sandboxes for the official SDK's tests, which reads its settings from the environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2b import Sandbox


@pytest.fixture(scope="session")
def shared() -> Iterator[Sandbox]:
    """One sandbox for all tests that leave it usable."""
    sandbox = Sandbox.create(timeout=300)
    yield sandbox
    sandbox.kill()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox of the test's own."""
    own = Sandbox.create(timeout=120)
    yield own
    own.kill()


@pytest.fixture
def folder(shared: Sandbox, request: pytest.FixtureRequest) -> str:
    """An empty folder of the test's own in the shared sandbox."""
    path = f"/home/user/{request.node.name}"
    shared.files.make_dir(path)
    return path
