"""Bodies of the templates API, and our rows as E2B's objects."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from config import ids
from config.drf import Body, to_wire_time
from templates_app.models import Template, TemplateBuild, TemplateTag


class UpdateInput(Body):
    public: bool | None = None


class AssignTagsInput(Body):
    target: str
    tags: list[str]


class DeleteTagsInput(Body):
    name: str
    tags: list[str]


class Creator(BaseModel):
    id: str
    email: str | None


class TemplateEntry(BaseModel):
    templateID: str
    buildID: str
    cpuCount: int
    memoryMB: int
    diskSizeMB: int
    public: bool
    aliases: list[str]
    names: list[str]
    createdAt: str
    updatedAt: str
    createdBy: Creator | None
    lastSpawnedAt: str | None
    spawnCount: int
    buildCount: int
    envdVersion: str
    buildStatus: str


class BuildEntry(BaseModel):
    buildID: str
    status: str
    createdAt: str
    updatedAt: str
    finishedAt: str | None = None
    cpuCount: int
    memoryMB: int
    diskSizeMB: int | None = None
    envdVersion: str | None = None


class TemplateWithBuilds(TemplateEntry):
    builds: list[BuildEntry]


class AliasEntry(BaseModel):
    templateID: str
    public: bool


class UpdatedNames(BaseModel):
    names: list[str]


class AssignedTags(BaseModel):
    tags: list[str]
    buildID: str


class TagEntry(BaseModel):
    tag: str
    buildID: str
    createdAt: str


def template_json(template: Template, facts: dict[str, Any]) -> dict[str, Any]:
    """`facts`: of this template, from `services.template_counts`. Aliases should be prefetched."""
    shown: TemplateBuild | None = facts["ready"] or facts["latest"]
    ready: TemplateBuild | None = facts["ready"]
    latest: TemplateBuild | None = facts["latest"]
    aliases = list(template.aliases.all())
    creator = template.created_by
    return {
        "templateID": template.public_id,
        "buildID": str(ready.public_id) if ready else ids.ZERO_UUID,
        "cpuCount": shown.cpu_count if shown else 0,
        "memoryMB": shown.memory_mb if shown else 0,
        "diskSizeMB": shown.disk_size_mb if shown else 0,
        "public": template.is_public,
        "aliases": list(dict.fromkeys(alias.alias for alias in aliases)),
        "names": names_of(template),
        "createdAt": to_wire_time(template.created_at),
        "updatedAt": to_wire_time(template.updated_at),
        "createdBy": {"id": str(creator.public_id), "email": None} if creator else None,
        "lastSpawnedAt": to_wire_time(template.last_spawned_at)
        if template.last_spawned_at
        else None,
        "spawnCount": template.spawn_count,
        "buildCount": facts["count"],
        "envdVersion": shown.envd_version if shown else "",
        "buildStatus": latest.status if latest else "waiting",
    }


def names_of(template: Template) -> list[str]:
    return [str(alias) for alias in template.aliases.all()]


def build_json(build: TemplateBuild) -> dict[str, Any]:
    body: dict[str, Any] = {
        "buildID": str(build.public_id),
        "status": build.status,
        "createdAt": to_wire_time(build.created_at),
        "updatedAt": to_wire_time(build.updated_at),
        "cpuCount": build.cpu_count,
        "memoryMB": build.memory_mb,
        "diskSizeMB": build.disk_size_mb,
        "envdVersion": build.envd_version,
    }
    if build.finished_at is not None:
        body["finishedAt"] = to_wire_time(build.finished_at)
    return body


def tag_json(assignment: TemplateTag) -> dict[str, Any]:
    return {
        "tag": assignment.tag,
        "buildID": str(assignment.build.public_id),
        "createdAt": to_wire_time(assignment.created_at),
    }
