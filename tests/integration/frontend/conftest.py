"""A team with Alice (owner), Bob (developer), Vera (viewer) and sandboxes; Charlie is outside."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import Membership, Role, Team, User
from accounts.services import create_personal_team
from sandboxes.models import Node, Sandbox
from templates_app.models import Template, TemplateAlias, TemplateBuild

PASSWORD = "correct horse battery"


def make_user(email: str) -> User:
    user = User.objects.create_user(email, PASSWORD)
    create_personal_team(user=user)
    return user


@pytest.fixture
def alice(db: None) -> User:
    return make_user("alice@example.com")


@pytest.fixture
def team(alice: User) -> Team:
    return Team.objects.get(memberships__user=alice)


@pytest.fixture
def bob(team: Team) -> User:
    user = make_user("bob@example.com")
    Membership.objects.create(team=team, user=user, role=Role.DEVELOPER)
    return user


@pytest.fixture
def vera(team: Team) -> User:
    user = make_user("vera@example.com")
    Membership.objects.create(team=team, user=user, role=Role.VIEWER)
    return user


@pytest.fixture
def charlie(db: None) -> User:
    return make_user("charlie@example.com")


def client_of(user: User) -> Client:
    client = Client(headers={"accept": "text/html"})
    client.force_login(user)
    return client


@pytest.fixture
def as_alice(alice: User) -> Client:
    return client_of(alice)


@pytest.fixture
def as_vera(vera: User) -> Client:
    return client_of(vera)


@pytest.fixture
def as_charlie(charlie: User) -> Client:
    return client_of(charlie)


@pytest.fixture
def node(db: None) -> Node:
    return Node.objects.create(
        node_id="n1", api_url="http://127.0.0.1:1", gateway_url="http://127.0.0.1:1"
    )


@pytest.fixture
def template(db: None) -> Template:
    template = Template.objects.create(is_public=True)
    TemplateAlias.objects.create(template=template, alias="base")
    TemplateBuild.objects.create(template=template, status="ready", image="base:latest")
    return template


class SandboxMaker:
    """Makes rows as the services leave them."""

    def __init__(self, team: Team, template: Template, node: Node) -> None:
        self.team, self.template, self.node = team, template, node

    def __call__(self, **fields: Any) -> Sandbox:
        now = timezone.now()
        values: dict[str, Any] = {
            "team": self.team,
            "template": self.template,
            "build": self.template.builds.get(),
            "node": self.node,
            "alias": "base",
            "state": "running",
            "created_at": now,
            "started_at": now,
            "end_at": now + timedelta(minutes=5),
            "cpu_count": 2,
            "memory_mb": 512,
            "disk_size_mb": 10240,
            "envd_version": "0.6.13",
            "timeout_seconds": 300,
        }
        values |= fields
        if values["state"] == "ended":
            values = {"ended_at": now, "end_reason": "killed"} | values
        return Sandbox.objects.create(**values)


@pytest.fixture
def make_sandbox(team: Team, template: Template, node: Node) -> SandboxMaker:
    return SandboxMaker(team, template, node)


@pytest.fixture
def sandbox(make_sandbox: SandboxMaker) -> Sandbox:
    return make_sandbox()
