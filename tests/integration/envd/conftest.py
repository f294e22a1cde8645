from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.envd.sockets import opened


@pytest.fixture(autouse=True)
def close_sockets() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()
