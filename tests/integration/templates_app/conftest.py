from __future__ import annotations

import pytest

from tests.api import api_of
from tests.factories import make_person


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
