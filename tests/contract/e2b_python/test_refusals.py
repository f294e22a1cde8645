from __future__ import annotations

import pytest
from e2b import AuthenticationException, NotFoundException, Sandbox, SandboxException


def count() -> int:
    pages = Sandbox.list()
    found = 0
    while pages.has_next:
        found += len(pages.next_items())
    return found


def test_an_unknown_template_is_told_and_nothing_is_created() -> None:
    before = count()
    with pytest.raises((NotFoundException, SandboxException), match="no-such-template"):
        Sandbox.create("no-such-template")
    assert count() == before


@pytest.mark.parametrize("timeout", [-5, 10**9])
def test_a_timeout_out_of_range_is_refused(timeout: int) -> None:
    before = count()
    with pytest.raises(SandboxException, match=r"(?i)timeout"):
        Sandbox.create(timeout=timeout)
    assert count() == before


@pytest.mark.parametrize("key", ["e2b_" + "0" * 40, "e2b_" + "g" * 40, "nonsense"])
def test_a_wrong_key_is_refused(key: str) -> None:
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key=key, validate_api_key=False)
