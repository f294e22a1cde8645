"""Every operation of our own OpenAPI document: no crash whatever comes, and nothing across teams.

Operations are read from the document, so that a new one is covered on the day it is added.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from django.test import Client
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig
from schemathesis.core import NOT_SET

from accounts.models import AccessToken, APIKey
from sandboxes.models import Sandbox
from templates_app.models import Template
from tests.api import api_of, as_user
from tests.factories import Person, adopt, make_person, make_sandbox, make_template
from tests.factories import start_agent as start

EXAMPLES = 4  # for each operation; a hundred when one looks for trouble
DOCUMENT: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
METHODS = ("get", "post", "put", "patch", "delete")
OPERATIONS = [
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    if method in METHODS
]


@dataclass
class World:
    """Alice has one of everything; Charlie is in another team."""

    alice: Person
    charlie: Person
    template: Template
    sandbox: Sandbox
    ids: dict[str, str]  # path parameter -> what it is of Alice's

    def fill(self, path: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda match: self.ids[match[1]], path)

    def fill_unknown(self, path: str) -> str:
        """The same with ids of the same form that nobody has."""
        return re.sub(r"\{(\w+)\}", lambda match: _unknown(self.ids[match[1]]), path)


def _unknown(known: str) -> str:
    if known.isdigit():
        return str(int(known) + 90_000)
    try:
        return str(uuid.UUID(known) and uuid.uuid4())
    except ValueError:
        return known[:1] + known[1:][::-1]


@pytest.fixture
def agent(db):
    running = start()
    yield running
    running.close()


@pytest.fixture
def world(db, agent) -> World:
    alice, charlie = make_person("alice"), make_person("charlie")
    template = make_template("private", team=alice.team)
    build = template.builds.latest("pk")
    sandbox = make_sandbox(alice.team, template=template)
    adopt(agent, sandbox)
    key = APIKey.objects.filter(team=alice.team).first()
    ids = {
        "sandbox_id": sandbox.public_id,
        "template_id": template.public_id,
        "reference": template.public_id,
        "build_id": str(build.public_id),
        "files_hash": "a" * 64,
        "team_id": str(alice.team.public_id),
        "key_id": str(key.public_id),
        "token_id": str(AccessToken.objects.get(user=alice.user).public_id),
        "node_id": agent.node_id,
        "invoice_id": "INV-000001",
        "addon_id": "1",
        "position": "1",
    }
    return World(alice, charlie, template, sandbox, ids)


def documented(method: str, path: str) -> set[int]:
    return {int(code) for code in DOCUMENT["paths"][path][method.lower()]["responses"]}


# --- No crash --------------------------------------------------------------------------------

SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
SCHEMA.config.generation = GenerationConfig(
    modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_whatever_comes_is_answered_as_documented(world: World, method: str, path: str) -> None:
    operation = SCHEMA[path][method]
    client = Client(raise_request_exception=False)

    @given(case=operation.as_strategy(), real=st.booleans())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any, real: bool) -> None:
        filled = world.fill(path) if real else case.formatted_path
        query = {name: value for name, value in (case.query or {}).items() if value is not None}
        body = case.body
        has_body = body is not NOT_SET
        raw = body if isinstance(body, bytes) else json.dumps(body) if has_body else b""
        response = client.generic(
            method,
            filled,
            raw,
            content_type="application/json",
            headers=world.alice.headers,
            query_params=query,
        )
        assert response.status_code != 500, response.content
        assert response.status_code in documented(method, path), response.content
        if response.status_code >= 400:
            assert response.json()["code"] == response.status_code

    run()


# --- Across teams ----------------------------------------------------------------------------

# Enough of a body to get past the checks of form; an operation that needs one must be here.
BODIES: dict[str, Any] = {
    "POST /sandboxes/{sandbox_id}/connect": {"timeout": 60},
    "POST /sandboxes/{sandbox_id}/timeout": {"timeout": 60},
    "POST /nodes/{node_id}": {"status": "draining"},
    "PATCH /api-keys/{key_id}": {"name": "stolen"},
    "PATCH /templates/{reference}": {"public": True},
    "PATCH /v2/templates/{reference}": {"public": True},
    "POST /templates/{reference}": {"dockerfile": "FROM e2bdev/base"},
    "POST /v2/templates/{template_id}/builds/{build_id}": {"fromImage": "e2bdev/base"},
}
QUERIES = {"GET /teams/{team_id}/metrics/max": "?metric=concurrent_sandboxes"}
# Answers that the contract wants for ids nobody has: nothing, as if there were nothing.
BLANK = {
    "GET /sandboxes/{sandbox_id}/logs",
    "GET /v2/sandboxes/{sandbox_id}/logs",
    "GET /sandboxes/{sandbox_id}/metrics",
}
# E2B's words for a template that is there but another team's, or for another team's metrics: ids
# are not secret there, and clients tell "taken" from "free" by it.
FORBIDDEN = re.compile(r"^/(v2/)?templates/|^/teams/")
# What only an owner may do, whatever the id.
OWNERS = re.compile(r"^/v1/billing/")
# What only the operator's token opens.
OPERATORS = re.compile(r"^/(admin|nodes)")


def everything() -> Any:
    """What must not change when Charlie tries."""
    keys = APIKey.objects.order_by("pk").values("public_id", "name", "revoked_at")
    return [
        *(list(model.objects.order_by("pk").values()) for model in (Sandbox, Template)),
        [*keys],
    ]


def call(person: Person, method: str, path: str, body: Any) -> Any:
    """With the team's key; where only users are let in, as the user."""
    response = api_of(person).call(method, path, body)
    return as_user(person).call(method, path, body) if response.status_code == 401 else response


@pytest.mark.parametrize(("method", "path"), [pair for pair in OPERATIONS if "{" in pair[1]])
def test_another_teams_ids_are_ids_nobody_has(
    world: World, agent: Any, method: str, path: str
) -> None:
    operation = f"{method} {path}"
    body = BODIES.get(operation, None if method == "GET" else {})
    before, calls = everything(), list(agent.sandboxes)

    query = QUERIES.get(operation, "")
    theirs = call(world.charlie, method, world.fill(path) + query, body)
    nobodys = call(world.charlie, method, world.fill_unknown(path) + query, body)

    if OPERATORS.match(path):
        assert theirs.status_code == nobodys.status_code == 401
    elif operation in BLANK:
        assert theirs.status_code == nobodys.status_code == 200
        assert theirs.data == nobodys.data
    elif FORBIDDEN.match(path) and theirs.status_code == 403:
        assert "access" in theirs.data["message"] or "not authorized" in theirs.data["message"]
    elif OWNERS.match(path) and theirs.status_code == 403:
        assert nobodys.data == theirs.data
    else:
        assert (theirs.status_code, nobodys.status_code) == (404, 404), theirs.content
    assert everything() == before
    assert list(agent.sandboxes) == calls


def test_the_document_is_complete(world: World) -> None:
    """Each path parameter is one the tests above know how to fill."""
    names = {name for _, path in OPERATIONS for name in re.findall(r"\{(\w+)\}", path)}
    assert names <= set(world.ids)
