"""Business verbs on builds: ask for one, start it, follow what its node says, end it.

Which node carries a build out is not decided here: `sandboxes` knows the nodes, and installs itself
as the runner.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from django.db import IntegrityError, connection, transaction
from django.db.models import Q

from accounts.models import APIKey, Team, User
from billing.services import accounts as billing_accounts
from config import ids
from config.errors import Conflict, InvalidArgument, NotFound, PermissionDenied, QuotaExceeded
from nodeagent import wire
from templates_app.access import resolve_for_start
from templates_app.models import (
    BuildLogEntry,
    BuildStatus,
    LogLevel,
    Template,
    TemplateAlias,
    TemplateBuild,
    TemplateKind,
    TemplateTag,
)
from templates_app.references import DEFAULT_TAG, Reference, normalized_tags, parse_reference
from templates_app.steps import StepDict, base_key, plan_steps, ready_command

logger = logging.getLogger(__name__)

DEFAULT_CPU_COUNT = 2
DEFAULT_MEMORY_MB = 1024
DEFAULT_DISK_MB = 10240
LEAST_MEMORY_MB = 128
MOST_CPU_COUNT = 32
WAITING_LIMIT = timedelta(minutes=40)
BUILDING_LIMIT = timedelta(hours=1, minutes=5)
IMAGE_REPOSITORY = "sandlot/template"

SUPERSEDED = "The build was canceled because it was superseded by a newer one."
CANCELLED = "build was cancelled"
TOO_LONG_WAITING = "build is in waiting state for too long"
TOO_LONG = "build status polling timed out. Maximum build time is 1h0m0s."
INTERNAL = "An internal error occurred. Please try again or contact support with the build ID."
UNFINISHED = (BuildStatus.WAITING, BuildStatus.BUILDING)
NO_RETRY = {"Should-Retry": "false"}


@dataclass(frozen=True, kw_only=True)
class RegistryLogin:
    """Credentials for one pull. They go to the node and are stored nowhere."""

    username: str = field(repr=False)
    password: str = field(repr=False)


class BuildRunner(Protocol):
    def start(self, build: TemplateBuild, login: RegistryLogin | None, *, now: datetime) -> None:
        """Give a build to a node; one that cannot be given now is tried again later."""

    def cancel(self, build: TemplateBuild) -> None:
        """Best effort."""


_runner: BuildRunner | None = None


def install_runner(runner: BuildRunner) -> None:
    global _runner
    _runner = runner


# --- Asking for a build ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Resources:
    cpu_count: int
    memory_mb: int
    disk_size_mb: int


def request_build(
    *,
    team: Team,
    name: str,
    tags: Sequence[str],
    resources: Resources,
    now: datetime,
    key: APIKey | None = None,
    user: User | None = None,
) -> tuple[TemplateBuild, list[str]]:
    """A waiting build of the template `name`, which is made if there is none; and the build's tags.

    Builds of the same template that wait with one of the tags are superseded.
    Raises: InvalidArgument, PermissionDenied, Conflict, QuotaExceeded.
    """
    reference = _own_name(team, name)
    wanted = normalized_tags([*([reference.tag] if reference.tag else []), *tags]) or [DEFAULT_TAG]
    for attempt in (1, 2):
        try:
            with transaction.atomic():
                template = _template_named(team, reference, user=user, now=now)
                build = _new_build(team, template, wanted, resources, key=key, now=now)
                return build, wanted
        except IntegrityError:
            if attempt == 2:  # somebody else made the name at the same moment; now it is there
                raise
    raise AssertionError("unreachable")


def request_rebuild(
    *,
    team: Team,
    template: Template,
    resources: Resources,
    now: datetime,
    key: APIKey | None = None,
) -> TemplateBuild:
    """A waiting build of a template that is there. Raises: QuotaExceeded."""
    with transaction.atomic():
        return _new_build(team, template, [DEFAULT_TAG], resources, key=key, now=now)


def checked_resources(
    team: Team,
    *,
    cpu_count: int | None,
    memory_mb: int | None,
    min_free_disk_mb: int | None,
    now: datetime,
) -> Resources:
    """Raises: InvalidArgument."""
    limits = billing_accounts.limits_for(team.pk, now=now)
    cpu = DEFAULT_CPU_COUNT if cpu_count is None else cpu_count
    memory = DEFAULT_MEMORY_MB if memory_mb is None else memory_mb
    help_text = "(if you need to increase this limit, please contact support)"
    if cpu < 1:
        raise InvalidArgument("validation error: cpuCount must be at least 1")
    if memory < LEAST_MEMORY_MB:
        raise InvalidArgument(f"validation error: memoryMB must be at least {LEAST_MEMORY_MB}")
    if cpu > MOST_CPU_COUNT:
        raise InvalidArgument(f"CPU count must be at most {MOST_CPU_COUNT}")
    if cpu != 1 and cpu % 2:
        raise InvalidArgument("CPU count must be 1 or an even number")
    if cpu * 1000 > limits.max_milli_vcpu:
        most = limits.max_milli_vcpu // 1000
        raise InvalidArgument(f"CPU count can't be higher than {most} {help_text}")
    if memory % 2:
        raise InvalidArgument("Memory must be divisible by 2")
    if memory > limits.max_memory_mib:
        raise InvalidArgument(
            f"Memory can't be higher than {limits.max_memory_mib} MiB {help_text}"
        )
    if min_free_disk_mb is not None and min_free_disk_mb < 0:
        raise InvalidArgument("validation error: minFreeDiskMb must be at least 0")
    disk = min(max(DEFAULT_DISK_MB, min_free_disk_mb or 0), limits.max_disk_mib)
    return Resources(cpu_count=cpu, memory_mb=memory, disk_size_mb=disk)


def _own_name(team: Team, name: str) -> Reference:
    try:
        reference = parse_reference(name)
    except InvalidArgument as error:
        kind = "Invalid tag" if error.message.startswith("invalid tag") else "Invalid name"
        raise InvalidArgument(f"{kind}: {error.message}") from error
    if reference.namespace is not None and reference.namespace != team.slug:
        raise InvalidArgument(
            f"namespace '{reference.namespace}' must match your team '{team.slug}'"
        )
    return reference


def _template_named(
    team: Team, reference: Reference, *, user: User | None, now: datetime
) -> Template:
    alias = (
        TemplateAlias.objects.select_related("template")
        .filter(namespace=team.slug, alias=reference.name)
        .first()
    )
    if alias is not None:
        template = alias.template
        if template.team_id != team.pk or template.kind != TemplateKind.TEMPLATE:
            raise PermissionDenied(f"Alias '{reference.name}' already used")
        return template
    if Template.objects.filter(public_id=reference.name).exists():
        raise Conflict(f"Alias '{reference.name}' is already used")
    template = Template.objects.create(team=team, created_by=user, created_at=now, updated_at=now)
    TemplateAlias.objects.create(
        template=template, namespace=team.slug, alias=reference.name, created_at=now
    )
    return template


def _new_build(
    team: Team,
    template: Template,
    tags: list[str],
    resources: Resources,
    *,
    key: APIKey | None,
    now: datetime,
) -> TemplateBuild:
    _lock_team(team)
    limit = billing_accounts.limits_for(team.pk, now=now).concurrent_builds
    unfinished = TemplateBuild.objects.filter(template__team=team, status__in=UNFINISHED)
    rivals = _sharing(template, tags)
    if unfinished.exclude(pk__in=rivals).count() >= limit:
        raise QuotaExceeded(
            f"you have reached the maximum number of concurrent template builds ({limit})."
            " Please wait for one to finish.",
            headers=NO_RETRY,
        )
    for rival in TemplateBuild.objects.filter(pk__in=rivals, status=BuildStatus.WAITING):
        fail_build(rival, SUPERSEDED, now=now)
    build = TemplateBuild.objects.create(
        template=template,
        cpu_count=resources.cpu_count,
        memory_mb=resources.memory_mb,
        disk_size_mb=resources.disk_size_mb,
        created_by_key=key,
        created_at=now,
        updated_at=now,
    )
    # Written now, so that the list of tags shows them; they count once the build is ready.
    TemplateTag.objects.bulk_create(
        TemplateTag(template=template, tag=tag, build=build, created_at=now) for tag in tags
    )
    Template.objects.filter(pk=template.pk).update(updated_at=now)
    return build


def _sharing(template: Template, tags: Sequence[str]) -> list[int]:
    """Unfinished builds of the template that carry one of the tags."""
    return list(
        TemplateTag.objects.filter(
            template=template, tag__in=tags, build__status__in=UNFINISHED
        ).values_list("build_id", flat=True)
    )


def _lock_team(team: Team) -> None:
    if connection.features.has_select_for_update:
        Team.objects.select_for_update().only("pk").get(pk=team.pk)


# --- Starting ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe:
    from_image: str
    from_template: str
    steps: list[StepDict]
    start_cmd: str
    ready_cmd: str
    force: bool


def start_build(
    *, build: TemplateBuild, recipe: Recipe, login: RegistryLogin | None, now: datetime
) -> None:
    """Have a waiting build carried out. It is `building` when this returns.

    Builds of the template under way with one of its tags are cancelled. What is wrong with the
    recipe ends the build and raises nothing, except a source that is missing or given twice.
    Raises: InvalidArgument.
    """
    if bool(recipe.from_image) == bool(recipe.from_template):
        problem = (
            "cannot specify both fromImage and fromTemplate"
            if recipe.from_image
            else "must specify either fromImage or fromTemplate"
        )
        fail_build(build, problem, now=now)
        raise InvalidArgument(f"Error when starting template build: {problem}")
    tags = list(build.tags.values_list("tag", flat=True))
    rivals = [pk for pk in _sharing(build.template, tags) if pk != build.pk]
    claimed = TemplateBuild.objects.filter(pk=build.pk, status=BuildStatus.WAITING).update(
        status=BuildStatus.BUILDING,
        recipe={
            "fromImage": recipe.from_image,
            "fromTemplate": recipe.from_template,
            "steps": recipe.steps,
            "startCmd": recipe.start_cmd,
            "readyCmd": recipe.ready_cmd,
            "force": recipe.force,
        },
        progress_at=now,
        updated_at=now,
    )
    if not claimed:
        raise InvalidArgument("build is not in waiting state")
    for rival in TemplateBuild.objects.filter(pk__in=rivals, status=BuildStatus.BUILDING):
        cancel_build(rival, now=now)
    build.refresh_from_db()
    problem = _settle_sources(build, now=now)
    if problem:
        fail_build(build, problem, step="base", now=now)
    elif _runner is not None:
        _runner.start(build, login, now=now)


def _settle_sources(build: TemplateBuild, *, now: datetime) -> str:
    """Find the parent, take over what is inherited. Returns what is wrong, or nothing."""
    raw: dict[str, Any] = build.recipe or {}
    start_cmd, ready_cmd = raw["startCmd"], raw["readyCmd"]
    has_own = bool(start_cmd or ready_cmd)
    changes: dict[str, Any] = {}
    if raw["fromTemplate"]:
        team = build.template.team
        assert team is not None
        try:
            parent = resolve_for_start(team, raw["fromTemplate"]).build
        except (NotFound, InvalidArgument) as error:
            return error.message
        raw["parent"] = str(parent.public_id)
        changes = {"recipe": raw, "node_id": parent.node_id}
        if not has_own and parent.start_cmd:
            start_cmd, ready_cmd = parent.start_cmd, parent.ready_cmd
            changes |= {
                "start_user": parent.start_user or parent.default_user,
                "start_workdir": parent.workdir
                if parent.start_workdir is None
                else parent.start_workdir,
                "start_env": parent.env if parent.start_env is None else parent.start_env,
            }
    changes |= {"start_cmd": start_cmd, "ready_cmd": ready_command(start_cmd, ready_cmd)}
    TemplateBuild.objects.filter(pk=build.pk).update(**changes)
    for name, value in changes.items():
        setattr(build, name, value)
    return ""


def build_spec(build: TemplateBuild, login: RegistryLogin | None) -> wire.BuildTemplate:
    """The build as its node is to carry it out. Raises: NotFound when its parent is gone."""
    raw: dict[str, Any] = build.recipe or {}
    team = build.template.team
    assert team is not None
    common: dict[str, Any] = {}
    if raw["fromTemplate"]:
        parent = TemplateBuild.objects.filter(public_id=raw["parent"]).exclude(image="").first()
        if parent is None:
            raise NotFound("error getting base template, you may need to rebuild it first")
        key = base_key(parent_build_id=raw["parent"], disk_size_mb=build.disk_size_mb)
        common = {
            "base": parent.image,
            "base_name": raw["fromTemplate"],
            "base_is_template": True,
            "base_context": wire.BuildContext(
                user="user", workdir=parent.workdir, env=dict(parent.env)
            ),
        }
    else:
        key = base_key(image=raw["fromImage"], disk_size_mb=build.disk_size_mb)
        common = {"base": raw["fromImage"], "base_name": raw["fromImage"]}
    if login is not None:
        common |= {"registry_username": login.username, "registry_password": login.password}
    start_context = None
    if build.start_env is not None:
        start_context = wire.BuildContext(
            user=build.start_user, workdir=build.start_workdir or "", env=dict(build.start_env)
        )
    return wire.BuildTemplate(
        build_id=str(build.public_id),
        template_id=build.template.public_id,
        team_id=str(team.public_id),
        image=image_name(build),
        base_key=key,
        use_base_cache=not raw["force"],
        steps=plan_steps(key, raw["steps"], force=raw["force"]),
        start_cmd=build.start_cmd,
        ready_cmd=build.ready_cmd,
        start_context=start_context,
        cpu_count=build.cpu_count,
        memory_mb=build.memory_mb,
        disk_size_mb=build.disk_size_mb,
        **common,
    )


def image_name(build: TemplateBuild) -> str:
    return f"{IMAGE_REPOSITORY}:{build.public_id}"


# --- What nodes say ----------------------------------------------------------------------------

_LEVELS = {
    "debug": LogLevel.DEBUG,
    "info": LogLevel.INFO,
    "warn": LogLevel.WARN,
    "error": LogLevel.ERROR,
}
LEVEL_NAMES = {value: name for name, value in _LEVELS.items()}


def record_progress(*, build: TemplateBuild, progress: wire.BuildProgress, now: datetime) -> None:
    """Store lines and, with the last of them, the end. Saying it again changes nothing."""
    with transaction.atomic():
        row = TemplateBuild.objects.select_for_update().get(pk=build.pk)
        if row.status != BuildStatus.BUILDING:
            return  # its end is told already: what comes later is nobody's
        BuildLogEntry.objects.bulk_create(
            (
                BuildLogEntry(
                    build=row,
                    number=progress.first + offset,
                    at=datetime.fromtimestamp(line.at, UTC),
                    level=_LEVELS.get(line.level, LogLevel.INFO),
                    message=line.message,
                    step=line.step[:16],
                )
                for offset, line in enumerate(progress.lines)
            ),
            ignore_conflicts=True,
        )
        changes: dict[str, Any] = {"progress_at": now}
        if progress.phase is wire.BuildPhase.ERROR:
            changes |= _ended(BuildStatus.ERROR, now)
            changes |= {
                "error_message": progress.reason or INTERNAL,
                "error_step": progress.reason_step[:16],
            }
        elif progress.phase is wire.BuildPhase.READY and progress.result is not None:
            changes |= _ended(BuildStatus.READY, now)
            context = progress.result.context
            changes |= {
                "image": image_name(row),
                "image_id": progress.result.image_id,
                "size_bytes": progress.result.size_bytes,
                "node_id": progress.node_id,
                "default_user": context.user,
                "workdir": context.workdir,
                "env": context.env,
            }
        TemplateBuild.objects.filter(pk=row.pk).update(**changes)
        if "finished_at" in changes:
            Template.objects.filter(pk=row.template_id).update(updated_at=now)


def _ended(status: str, now: datetime) -> dict[str, Any]:
    return {"status": status, "finished_at": now, "updated_at": now}


# --- Ending ------------------------------------------------------------------------------------


def fail_build(build: TemplateBuild, message: str, *, now: datetime, step: str = "") -> bool:
    """End an unfinished build with a reason, its last line said. False when it had ended."""
    with transaction.atomic():
        moved = TemplateBuild.objects.filter(pk=build.pk, status__in=UNFINISHED).update(
            **_ended(BuildStatus.ERROR, now), error_message=message, error_step=step
        )
        if moved and build.status != BuildStatus.WAITING:
            last = build.log.order_by("-number").values_list("number", flat=True).first()
            BuildLogEntry.objects.create(
                build=build,
                number=0 if last is None else last + 1,
                at=now,
                level=LogLevel.ERROR,
                message=f"Build failed: {message}",
                step=step,
            )
    return bool(moved)


def cancel_build(build: TemplateBuild, *, now: datetime) -> None:
    if fail_build(build, CANCELLED, now=now) and _runner is not None:
        _runner.cancel(build)


def end_builds_of(template: Template, *, now: datetime) -> None:
    """A deleted template is built no further."""
    for build in template.builds.filter(status__in=UNFINISHED):
        cancel_build(build, now=now)


def end_overdue_builds(*, now: datetime) -> int:
    """Builds that were never started, or that ran out of time whatever their node says."""
    overdue = TemplateBuild.objects.filter(
        Q(status=BuildStatus.WAITING, created_at__lt=now - WAITING_LIMIT)
        | Q(status=BuildStatus.BUILDING, recipe__isnull=False, updated_at__lt=now - BUILDING_LIMIT)
    )
    count = 0
    for build in overdue[:200]:
        is_waiting = build.status == BuildStatus.WAITING
        if fail_build(build, TOO_LONG_WAITING if is_waiting else TOO_LONG, now=now):
            count += 1
            if not is_waiting and _runner is not None:
                _runner.cancel(build)
    return count


# --- Reading -----------------------------------------------------------------------------------


def access_build(team: Team, template_id: str, build_id: str) -> TemplateBuild:
    """Raises: InvalidArgument for an id that is none or names no build; PermissionDenied."""
    parsed = ids.parse_uuid(build_id)
    if parsed is None:
        raise InvalidArgument("Invalid build id")
    build = (
        TemplateBuild.objects.select_related("template__team")
        .filter(public_id=parsed, template__public_id=template_id)
        .first()
    )
    if build is None:
        raise InvalidArgument(f"Build '{build_id}' not found")
    if build.template.team_id != team.pk:
        raise PermissionDenied(f"You don't have access to this sandbox template ({template_id})")
    return build


def log_page(
    build: TemplateBuild, *, offset: int, limit: int, least_level: LogLevel
) -> list[BuildLogEntry]:
    """Oldest first; the offset counts what passes the level filter."""
    entries = build.log.filter(level__gte=least_level).order_by("number")
    return list(entries[offset : offset + limit])
