from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from django.utils import timezone

from nodeagent import wire
from templates_app import builds
from tests.api import api_of
from tests.factories import make_person


@dataclass
class Runner:
    """Takes builds and leaves them to the test."""

    started: list = field(default_factory=list)
    cancelled: list = field(default_factory=list)

    def start(self, build, login, *, now):
        self.started.append((build, login, builds.build_spec(build, login)))

    def cancel(self, build):
        self.cancelled.append(build)


@pytest.fixture
def runner(monkeypatch):
    fake = Runner()
    monkeypatch.setattr(builds, "_runner", fake)
    return fake


@pytest.fixture
def alice(db):
    return make_person("alice")


@pytest.fixture
def charlie(db):
    return make_person("charlie")


@pytest.fixture
def api(alice, runner):
    return api_of(alice)


@pytest.fixture
def other_api(charlie, runner):
    return api_of(charlie)


def request(api, name="mine", **fields):
    """(template id, build id) of a new build."""
    response = api.post("/v3/templates", {"name": name, **fields})
    assert response.status_code == 202, response.data
    return response.data["templateID"], response.data["buildID"]


def start(api, template_id, build_id, **body):
    body = body or {"fromImage": "ubuntu:22.04"}
    return api.post(f"/v2/templates/{template_id}/builds/{build_id}", body)


def status(api, template_id, build_id, query=""):
    return api.get(f"/templates/{template_id}/builds/{build_id}/status{query}")


def line(message, *, level="info", step=""):
    return wire.BuildLogLine(at=1.5, level=level, message=message, step=step)


def tell(build, **progress):
    builds.record_progress(
        build=build, progress=wire.BuildProgress(node_id="n", **progress), now=timezone.now()
    )


def ready(build, **context):
    result = wire.BuildResult(
        image_id="sha256:x", size_bytes=5, context=wire.BuildContext(user="user", **context)
    )
    tell(build, phase=wire.BuildPhase.READY, result=result)
