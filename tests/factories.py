"""Rows for tests, with just enough in them. `alice` owns a team, `charlie` is not in it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from accounts.models import Membership, Role, Team, User
from accounts.services import create_access_token, create_api_key, create_personal_team
from nodeagent import wire
from sandboxes.events import register_node
from sandboxes.lifecycle import EndReason, State
from sandboxes.models import Node, Sandbox
from sandboxes.nodes import node_token
from templates_app.models import (
    BuildStatus,
    Template,
    TemplateAlias,
    TemplateBuild,
    TemplateKind,
    TemplateTag,
)
from tests.fakes.agent import FakeAgent

_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Person:
    user: User
    team: Team
    key: str  # in the clear
    token: str  # an access token in the clear

    @property
    def headers(self) -> dict[str, str]:
        """Of the team's API key."""
        return {"X-API-Key": self.key}

    @property
    def user_headers(self) -> dict[str, str]:
        """Of the person acting in the team."""
        return {
            "Authorization": f"Bearer {self.token}",
            "X-Team-ID": str(self.team.public_id),
        }


def make_user(name: str = "", **fields: Any) -> User:
    name = name or f"user{next(_numbers)}"
    return User.objects.create_user(f"{name}@example.com", "a long passphrase", **fields)


def make_person(name: str = "") -> Person:
    """A user with a personal team, an API key of it and an access token."""
    user = make_user(name)
    team = create_personal_team(user=user)
    _, key = create_api_key(team=team, name="test key", created_by=user)
    _, token = create_access_token(user=user, name="test token")
    return Person(user=user, team=team, key=key, token=token)


def join(team: Team, user: User, role: Role = Role.DEVELOPER) -> Membership:
    return Membership.objects.create(team=team, user=user, role=role)


def make_template(
    alias: str | None = None,
    *,
    team: Team | None = None,
    is_public: bool | None = None,
    is_ready: bool = True,
    kind: TemplateKind = TemplateKind.TEMPLATE,
    **build: Any,
) -> Template:
    """A template with a build under `default`; without a team the platform's, and public."""
    template = Template.objects.create(
        team=team, is_public=team is None if is_public is None else is_public, kind=kind
    )
    if alias:
        TemplateAlias.objects.create(
            template=template, alias=alias, namespace=team.slug if team else None
        )
    make_build(template, is_ready=is_ready, **build)
    return template


def make_build(
    template: Template, *, is_ready: bool = True, tag: str | None = "default", **fields: Any
) -> TemplateBuild:
    build = TemplateBuild.objects.create(
        template=template,
        status=BuildStatus.READY if is_ready else BuildStatus.BUILDING,
        **{"image": "sandlot/test:latest", "image_id": "sha256:test", **fields},
    )
    if tag:
        TemplateTag.objects.create(template=template, tag=tag, build=build)
    return build


def make_node(node_id: str = "", *, now: datetime | None = None, **fields: Any) -> Node:
    """A node that reported just now, at an address where nobody answers."""
    now = now or timezone.now()
    defaults: dict[str, Any] = {
        "api_url": "http://127.0.0.1:9",
        "last_heartbeat_at": now,
        "cpu_count": 8,
        "memory_mb": 16384,
        "memory_available_mb": 8192,
        "disk_total_mb": 100_000,
        "disk_available_mb": 50_000,
        "max_sandboxes": 200,
    }
    return Node.objects.create(node_id=node_id or f"node{next(_numbers)}", **{**defaults, **fields})


def register(agent: FakeAgent) -> Node:
    """The node of a fake agent, as its first heartbeat makes it."""
    return register_node(agent.status(), now=timezone.now())


def start_agent(node_id: str = "", *, kind: type[FakeAgent] = FakeAgent, **options: Any) -> Any:
    """A fake agent that is registered; close it at the end."""
    node_id = node_id or f"node{next(_numbers)}"
    agent = kind(node_id, token=node_token(node_id), **options)
    register(agent)
    return agent


def make_sandbox(
    team: Team,
    *,
    template: Template | None = None,
    state: State = State.RUNNING,
    now: datetime | None = None,
    ends_in_seconds: float = 300,
    **fields: Any,
) -> Sandbox:
    """A row only; no node knows of it unless `adopt` tells one."""
    now = now or timezone.now()
    template = template or make_template()
    build = template.builds.latest("pk")
    values: dict[str, Any] = {
        "cpu_count": build.cpu_count,
        "memory_mb": build.memory_mb,
        "disk_size_mb": build.disk_size_mb,
        "envd_version": build.envd_version,
        "timeout_seconds": 300,
        "created_at": now,
        "state_changed_at": now,
    }
    if state is not State.STARTING:
        values |= {"started_at": now, "end_at": now + timedelta(seconds=ends_in_seconds)}
    if state is State.PAUSED:
        values |= {"paused_at": now, "end_at": now}
    if state is State.ENDED:
        values |= {"ended_at": now, "end_reason": EndReason.KILLED}
    return Sandbox.objects.create(
        team=team, template=template, build=build, state=state, **{**values, **fields}
    )


def adopt(agent: FakeAgent, sandbox: Sandbox) -> None:
    """Let a fake agent have a sandbox as the row says it is."""
    assert sandbox.started_at is not None
    assert sandbox.end_at is not None
    is_paused = sandbox.state == State.PAUSED
    agent.sandboxes[sandbox.public_id] = wire.SandboxState(
        sandbox_id=sandbox.public_id,
        state=wire.NodeSandboxState.PAUSED if is_paused else wire.NodeSandboxState.RUNNING,
        started_at=sandbox.started_at.timestamp(),
        end_at=sandbox.end_at.timestamp(),
        paused_at=sandbox.paused_at.timestamp() if sandbox.paused_at else None,
    )
    Sandbox.objects.filter(pk=sandbox.pk).update(node=Node.objects.get(node_id=agent.node_id))
    sandbox.refresh_from_db()
