"""Business verbs on templates, aliases and tags. Builds have a module of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F

from accounts.models import Team
from config.errors import Conflict, InvalidArgument, NotFound, PermissionDenied
from templates_app.access import find_build, find_template
from templates_app.builds import end_builds_of
from templates_app.models import (
    BuildStatus,
    Template,
    TemplateAlias,
    TemplateBuild,
    TemplateKind,
    TemplateTag,
)
from templates_app.references import DEFAULT_TAG, normalized_tags, parse_reference


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What a ready build is made of."""

    image: str
    image_id: str
    size_bytes: int = 0
    cpu_count: int = 2
    memory_mb: int = 1024
    disk_size_mb: int = 10240
    start_cmd: str = ""
    ready_cmd: str = ""
    default_user: str = "user"
    workdir: str = ""
    env: dict[str, str] = field(default_factory=dict)
    pool_size: int | None = None


def ensure_platform_template(
    *, name: str, facts: ImageFacts, is_public: bool, now: datetime
) -> tuple[Template, TemplateBuild, bool]:
    """The platform's own template `name`, with a ready build of these facts.

    The same image and facts again change nothing; returns whether a build was added.
    """
    with transaction.atomic():
        alias = (
            TemplateAlias.objects.select_related("template")
            .filter(namespace=None, alias=name)
            .first()
        )
        if alias is None:
            template = Template.objects.create(is_public=is_public, created_at=now, updated_at=now)
            TemplateAlias.objects.create(template=template, alias=name, created_at=now)
        else:
            template = alias.template
            Template.objects.filter(pk=template.pk).update(is_public=is_public, deleted_at=None)
            template.is_public = is_public
        current = find_build(template, None)
        if current is not None and _is_same(current, facts):
            TemplateBuild.objects.filter(pk=current.pk).update(pool_size=facts.pool_size)
            return template, current, False
        build = TemplateBuild.objects.create(
            template=template,
            status=BuildStatus.READY,
            created_at=now,
            updated_at=now,
            finished_at=now,
            **vars(facts),
        )
        TemplateTag.objects.create(template=template, tag=DEFAULT_TAG, build=build, created_at=now)
        Template.objects.filter(pk=template.pk).update(updated_at=now)
    return template, build, True


def _is_same(build: TemplateBuild, facts: ImageFacts) -> bool:
    return all(
        getattr(build, name) == value
        for name, value in vars(facts).items()
        if name not in {"size_bytes", "pool_size"}
    )


def note_spawn(template_id: int, *, now: datetime) -> None:
    Template.objects.filter(pk=template_id).update(
        spawn_count=F("spawn_count") + 1, last_spawned_at=now
    )


def set_public(*, template: Template, is_public: bool, now: datetime) -> None:
    template.is_public, template.updated_at = is_public, now
    template.save(update_fields=["is_public", "updated_at"])


def register_global_aliases(*, template: Template, now: datetime) -> None:
    """Make the template's bare names global. Raises: Conflict when another template has one."""
    names = template.aliases.values_list("alias", flat=True)
    for name in list(names):
        taken = TemplateAlias.objects.filter(namespace=None, alias=name).first()
        if taken is not None and taken.template_id != template.pk:
            raise Conflict(f"Public template name '{name}' is already taken.")
        if taken is None:
            try:
                with transaction.atomic():
                    TemplateAlias.objects.create(template=template, alias=name, created_at=now)
            except IntegrityError as error:
                raise Conflict(f"Public template name '{name}' is already taken.") from error


def delete_template(*, template: Template, now: datetime) -> None:
    """Release its names and hide it. Whether sandboxes still need it is the caller's to check."""
    with transaction.atomic():
        TemplateAlias.objects.filter(template=template).delete()
        Template.objects.filter(pk=template.pk, deleted_at=None).update(deleted_at=now)
    template.deleted_at = now
    end_builds_of(template, now=now)


def refuse_while_used(template: Template) -> None:
    """Raises: InvalidArgument while sandboxes stand on it."""
    states = set(template.sandboxes.exclude(state="ended").values_list("state", flat=True))
    if not states:
        return
    kind = "paused" if states <= {"paused"} else "running"
    raise InvalidArgument(
        f"cannot delete template '{template.public_id}' because there are {kind} sandboxes using it"
    )


def assign_tags(
    *, team: Team, target: str, tags: list[str], now: datetime
) -> tuple[list[str], TemplateBuild]:
    """Point tags at the build that `target` (`name[:tag]`) names. Returns them and the build.

    Raises: InvalidArgument, NotFound, PermissionDenied.
    """
    if not tags:
        raise InvalidArgument("At least one tag is required")
    wanted = normalized_tags(tags)
    template, tag = _own_template(
        team, target, malformed="Invalid target template format", not_found="target"
    )
    build = find_build(template, tag)
    if build is None:
        raise NotFound(f"Template '{target}' with tag '{tag or DEFAULT_TAG}' not found")
    with transaction.atomic():
        TemplateTag.objects.bulk_create(
            TemplateTag(template=template, tag=name, build=build, created_at=now) for name in wanted
        )
        Template.objects.filter(pk=template.pk).update(updated_at=now)
    return wanted, build


def remove_tags(*, team: Team, name: str, tags: list[str]) -> None:
    """Raises: InvalidArgument, NotFound, PermissionDenied."""
    if not tags:
        raise InvalidArgument("At least one tag is required")
    wanted = normalized_tags(tags)
    if DEFAULT_TAG in wanted:
        raise InvalidArgument("Cannot delete the 'default' tag")
    if ":" in name:
        raise InvalidArgument(
            "Template name should not contain a tag, use the 'tags' field instead"
        )
    template, _ = _own_template(
        team, name, malformed="Invalid template name format", not_found="name"
    )
    TemplateTag.objects.filter(template=template, tag__in=wanted).delete()


def latest_tags(template: Template) -> list[TemplateTag]:
    """The newest assignment of each tag, by tag."""
    newest: dict[str, TemplateTag] = {}
    for assignment in template.tags.select_related("build").order_by("pk"):
        newest[assignment.tag] = assignment
    return [newest[tag] for tag in sorted(newest)]


def _own_template(
    team: Team, raw: str, *, malformed: str, not_found: str
) -> tuple[Template, str | None]:
    try:
        reference = parse_reference(raw)
    except InvalidArgument as error:
        raise InvalidArgument(f"{malformed}: {error.message}") from error
    if reference.namespace is not None and reference.namespace != team.slug:
        raise InvalidArgument(
            f"namespace '{reference.namespace}' must match your team '{team.slug}'"
        )
    template = find_template(team, reference)
    if template is None or template.kind != TemplateKind.TEMPLATE:
        if not_found == "target":
            raise NotFound(
                f"Template '{reference.without_tag}' with tag"
                f" '{reference.tag or DEFAULT_TAG}' not found"
            )
        raise NotFound(f"Template '{reference.without_tag}' not found")
    if template.team_id != team.pk:
        raise PermissionDenied(f"You don't have access to template '{reference.without_tag}'")
    return template, reference.tag


def template_counts(templates: list[Template]) -> dict[int, dict[str, Any]]:
    """Per template key: its newest build of any status, its newest ready one, and how many."""
    facts: dict[int, dict[str, Any]] = {
        template.pk: {"latest": None, "ready": None, "count": 0} for template in templates
    }
    builds = TemplateBuild.objects.filter(template__in=list(facts)).order_by("created_at", "pk")
    for build in builds:
        fact = facts[build.template_id]
        fact["latest"] = build
        fact["count"] += 1
        if build.status == BuildStatus.READY:
            fact["ready"] = build
    return facts
