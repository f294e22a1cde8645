"""Sandboxes for the official code interpreter SDK's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2b_code_interpreter import Sandbox


@pytest.fixture(scope="session")
def shared() -> Iterator[Sandbox]:
    """One sandbox for all tests that leave it usable."""
    sandbox = Sandbox.create(timeout=300, envs={"FROM_CREATE": "here"})
    yield sandbox
    sandbox.kill()
