from __future__ import annotations

from datetime import timedelta
from urllib.parse import quote, urlencode

import pytest
from django.utils import timezone

from config.drf import to_wire_time
from sandboxes.lifecycle import State
from tests.api import check_error
from tests.factories import make_sandbox, make_template


def ids(response):
    assert response.status_code == 200, response.content
    return [entry["sandboxID"] for entry in response.data]


def encoded(pairs):
    quoted = {quote(key, safe=""): quote(value, safe="") for key, value in pairs.items()}
    return quote(urlencode(quoted), safe="")


@pytest.fixture
def four(alice):
    """Of one team, oldest first: running, paused, running, paused."""
    template = make_template("base")
    states = [State.RUNNING, State.PAUSED, State.RUNNING, State.PAUSED]
    now = timezone.now()
    return [
        make_sandbox(
            alice.team, template=template, state=state, now=now - timedelta(seconds=60 - index)
        )
        for index, state in enumerate(states)
    ]


def test_both_states_in_one_order_newest_first(api, four):
    response = api.get("/v2/sandboxes")
    assert ids(response) == [sandbox.public_id for sandbox in reversed(four)]
    assert [entry["state"] for entry in response.data] == ["paused", "running"] * 2
    assert response.headers["X-Total-Running"] == "2"
    assert "X-Next-Token" not in response.headers


def test_ascending_is_the_exact_reverse(api, alice):
    template, now = make_template(), timezone.now()
    for _ in range(3):  # started at the same instant: the id decides
        make_sandbox(alice.team, template=template, now=now)
    descending = ids(api.get("/v2/sandboxes"))
    assert ids(api.get("/v2/sandboxes?order=asc")) == descending[::-1]
    assert descending == sorted(descending)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("state", ["", "&state=running", "&state=paused"])
def test_pages_hold_everything_once(api, alice, order, state):
    template, now = make_template(), timezone.now()
    for index in range(7):
        make_sandbox(
            alice.team,
            template=template,
            state=State.PAUSED if index % 2 else State.RUNNING,
            now=now - timedelta(seconds=index // 3),
        )
    whole = ids(api.get(f"/v2/sandboxes?order={order}{state}"))
    seen, token, pages = [], "", 0
    while pages < 10:
        page = api.get(f"/v2/sandboxes?limit=2&order={order}{state}{token}")
        seen += ids(page)
        pages += 1
        if "X-Next-Token" not in page.headers:
            break
        token = f"&nextToken={page.headers['X-Next-Token']}"
    assert seen == whole
    assert pages == (len(whole) + 1) // 2


@pytest.mark.parametrize("query", ["state=running,paused", "state=running&state=paused", ""])
def test_states_are_joined_or_repeated(api, four, query):
    assert len(ids(api.get(f"/v2/sandboxes?{query}"))) == 4


def test_only_paused_ones_have_no_total(api, four):
    response = api.get("/v2/sandboxes?state=paused")
    assert len(ids(response)) == 2
    assert "X-Total-Running" not in response.headers


PAIRS = [
    {"a": "b"},
    {"key with spaces": "v&v=v%v+v"},
    {"ключ": "值 🦀"},
    {"1": "2"},
    {'"quoted"': "it's"},
    {"a.b": "$[0]"},
    {"": ""},
]


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("route", ["/sandboxes", "/v2/sandboxes"])
def test_metadata_finds_exactly_what_has_it(api, alice, pairs, route):
    template = make_template()
    wanted = make_sandbox(
        alice.team, template=template, metadata={**pairs, "more": "x"}, has_metadata=True
    )
    make_sandbox(alice.team, template=template, metadata={"other": "y"}, has_metadata=True)
    response = api.get(f"{route}?metadata={encoded(pairs)}")
    assert ids(response) == [wanted.public_id]
    assert response.data[0]["metadata"] == {**pairs, "more": "x"}


def test_all_pairs_must_match(api, alice):
    make_sandbox(alice.team, metadata={"a": "1", "b": "2"})
    assert len(ids(api.get(f"/v2/sandboxes?metadata={encoded({'a': '1', 'b': '2'})}"))) == 1
    assert ids(api.get(f"/v2/sandboxes?metadata={encoded({'a': '1', 'b': '3'})}")) == []


def test_started_after_includes_that_very_instant(api, alice):
    sandbox = make_sandbox(alice.team, now=timezone.now())
    at = to_wire_time(sandbox.started_at)
    assert len(ids(api.get(f"/v2/sandboxes?startedAfter={at}"))) == 1
    millis = at[:23] + "Z"
    assert len(ids(api.get(f"/v2/sandboxes?startedAfter={millis}"))) == 1
    with_offset = quote(sandbox.started_at.isoformat())
    assert len(ids(api.get(f"/v2/sandboxes?startedAfter={with_offset}"))) == 1
    later = to_wire_time(sandbox.started_at + timedelta(seconds=1))
    assert ids(api.get(f"/v2/sandboxes?startedAfter={later}")) == []


def test_a_template_filters_by_id_and_alias(api, alice, four):
    base = four[0].template
    make_sandbox(alice.team)
    assert len(ids(api.get(f"/v2/sandboxes?template={base.public_id}"))) == 4
    assert len(ids(api.get("/v2/sandboxes?template=base"))) == 4
    unknown = api.get("/v2/sandboxes?template=nothing-like-it")
    assert (ids(unknown), unknown.headers["X-Total-Running"]) == ([], "0")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "Invalid order parameter"),
        ("state=dead", "state"),
        ("startedAfter=yesterday", "startedAfter"),
        ("template=base:v1", "tags are not supported here"),
        ("template=a%20b", "Invalid template"),
        ("metadata=%25zz", "Error parsing metadata"),
        ("nextToken=garbage", "Invalid next token"),
    ],
)
def test_a_bad_query_is_refused(api, query, message):
    check_error(api.get(f"/v2/sandboxes?{query}"), 400, message)


def test_a_token_of_the_other_order_is_refused(api, four):
    token = api.get("/v2/sandboxes?limit=1").headers["X-Next-Token"]
    check_error(api.get(f"/v2/sandboxes?order=asc&nextToken={token}"), 400, "Invalid next token")


def test_the_older_list_shows_running_ones_only(api, four):
    assert ids(api.get("/sandboxes")) == [four[2].public_id, four[0].public_id]
    check_error(api.get("/sandboxes?metadata=x"), 400, "Error parsing metadata")


@pytest.mark.parametrize("route", ["/sandboxes", "/v2/sandboxes"])
def test_charlie_sees_none_of_it(other_api, four, route):
    assert ids(other_api.get(route)) == []


def test_a_page_of_many_costs_as_many_queries_as_one_of_few(api, alice, django_assert_num_queries):
    template = make_template()
    for _ in range(30):
        make_sandbox(alice.team, template=template)
    api.get("/v2/sandboxes")
    with django_assert_num_queries(3):
        assert len(ids(api.get("/v2/sandboxes"))) == 30
