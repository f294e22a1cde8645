from __future__ import annotations

import pytest

from tests.api import api_of
from tests.factories import make_person, make_template, start_agent


@pytest.fixture
def alice(db):
    return make_person("alice")


@pytest.fixture
def charlie(db):
    return make_person("charlie")


@pytest.fixture
def api(alice):
    """Alice's team, by its key."""
    return api_of(alice)


@pytest.fixture
def other_api(charlie):
    """Another team."""
    return api_of(charlie)


@pytest.fixture
def base(db):
    """The platform's template."""
    return make_template("base")


@pytest.fixture
def agent(db):
    running = start_agent()
    yield running
    running.close()
