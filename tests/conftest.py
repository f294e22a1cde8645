"""Which services answer, and the whole stack for tests that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import services
from tests.stack import Stack

DATABASE_FIXTURES = {"db", "transactional_db", "django_db_setup", "live_server"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database-only",
        action="store_true",
        help="only tests that touch a database or are marked postgres or redis; no whole stack",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.stack)
            item.add_marker(pytest.mark.docker)
    if "slow" not in (config.option.markexpr or ""):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    if config.getoption("--database-only"):
        chosen = [item for item in items if _touches_a_database(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen
    # Last, so that a fault of the parts is seen before the whole is started.
    items.sort(key=lambda item: item.get_closest_marker("stack") is not None)


def _touches_a_database(item: pytest.Item) -> bool:
    if item.get_closest_marker("stack"):
        return False
    marked = any(item.get_closest_marker(name) for name in ("django_db", "postgres", "redis"))
    return marked or bool(DATABASE_FIXTURES & set(getattr(item, "fixturenames", ())))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A missing service skips its tests; one that REQUIRE_SERVICES names fails them."""
    for name in services.CHECKS:
        if item.get_closest_marker(name) and (reason := services.why_missing(name)):
            if name in services.required():
                pytest.fail(f"{name} is required here: {reason}", pytrace=False)
            pytest.skip(f"{name}: {reason}")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The real thing: web, worker and agent on free ports, with a state directory of its own."""
    with Stack.start() as running:
        yield running


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    running = getattr(item, "funcargs", {}).get("stack")
    if report.failed and isinstance(running, Stack):
        report.sections.append(("ends of the stack's logs", running.logs()))
