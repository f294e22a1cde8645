"""Snapshots and forks: a commit of a running sandbox's files, and new sandboxes made from it."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.utils import timezone

from accounts.models import APIKey, Team, User
from config import ids
from config.errors import AppError, Conflict, InvalidArgument, QuotaExceeded, Unavailable
from nodeagent import errors as agent_errors
from sandboxes import limits
from sandboxes.access import not_found
from sandboxes.lifecycle import State
from sandboxes.models import Sandbox
from sandboxes.nodes import directory
from sandboxes.services.control import RETRY, vanished, wait_until
from sandboxes.services.create import CreateOptions, new_row, start
from sandboxes.settle import transition
from templates_app.access import ResolvedTemplate
from templates_app.models import (
    BuildStatus,
    Template,
    TemplateAlias,
    TemplateBuild,
    TemplateKind,
    TemplateTag,
)
from templates_app.references import DEFAULT_TAG, Reference, parse_reference

logger = logging.getLogger(__name__)

IMAGE_REPOSITORY = "sandlot/snapshot"
MAX_FORKS = 100
FORKS_AT_ONCE = 8
BETWEEN = frozenset({State.SNAPSHOTTING, State.RESUMING, State.PAUSING})


def snapshot_sandbox(
    *,
    sandbox: Sandbox,
    name: str | None,
    now: datetime,
    key: APIKey | None = None,
    user: User | None = None,
) -> tuple[Template, TemplateBuild, Reference | None]:
    """Commit a running sandbox's file system. It goes on with the same id, processes and deadline.

    The same name again is a new build of the same snapshot. Processes are not carried: a sandbox
    made from it boots from disk, and `TemplateBuild.has_memory` says so.
    Raises: InvalidArgument, NotFound, Conflict, Unavailable.
    """
    reference = _checked_name(sandbox.team, name)
    build = _take(sandbox, verb="snapshotted")
    with transaction.atomic():  # settle
        template = _template_for(sandbox, reference, user=user, now=now)
        holder, build.template = build.template, template
        build.created_by_key = key
        build.save(update_fields=["template", "created_by_key"])
        holder.delete()
        tag = (reference.tag if reference else None) or DEFAULT_TAG
        TemplateTag.objects.create(template=template, tag=tag, build=build, created_at=now)
        Template.objects.filter(pk=template.pk).update(updated_at=now)
    return template, build, reference


def _checked_name(team: Team, name: str | None) -> Reference | None:
    if name is None:
        return None
    try:
        reference = parse_reference(name)
    except InvalidArgument as error:
        raise InvalidArgument(f"Invalid name: {error.message}") from error
    if reference.namespace is not None and reference.namespace != team.slug:
        raise InvalidArgument(
            f"namespace '{reference.namespace}' must match your team '{team.slug}'"
        )
    taken = (
        TemplateAlias.objects.select_related("template")
        .filter(namespace=team.slug, alias=reference.name)
        .first()
    )
    if taken is not None and taken.template.kind != TemplateKind.SNAPSHOT:
        raise Conflict(f"'{reference.name}' is the name of a template")
    return reference


def _template_for(
    sandbox: Sandbox, reference: Reference | None, *, user: User | None, now: datetime
) -> Template:
    team = sandbox.team
    if reference is not None:
        alias = (
            TemplateAlias.objects.select_related("template")
            .filter(namespace=team.slug, alias=reference.name)
            .first()
        )
        if alias is not None:
            return alias.template
    template = Template.objects.create(
        team=team,
        kind=TemplateKind.SNAPSHOT,
        created_by=user,
        source_sandbox_id=sandbox.public_id,
        created_at=now,
        updated_at=now,
    )
    if reference is not None:
        TemplateAlias.objects.create(
            template=template, namespace=team.slug, alias=reference.name, created_at=now
        )
    return template


def _take(sandbox: Sandbox, *, verb: str) -> TemplateBuild:
    """Have the node commit it; the build's template is in no list."""
    for _ in range(3):
        state = State(sandbox.state)
        if state is State.RUNNING:
            try:
                transition(sandbox, to=State.SNAPSHOTTING, now=timezone.now())  # claim
                break
            except Conflict:
                sandbox.refresh_from_db()
        elif state in BETWEEN:
            wait_until(sandbox, lambda state: state not in BETWEEN)
        elif state is State.PAUSED:
            raise Conflict(
                f"Sandbox '{sandbox.public_id}' cannot be {verb} while in 'paused' state"
            )
        else:
            raise not_found(sandbox.public_id)
    else:
        raise Conflict(
            f"Sandbox '{sandbox.public_id}' cannot be {verb} while in '{sandbox.state}' state"
        )
    build = _hold_image(sandbox, now=timezone.now())
    try:
        build.size_bytes = directory.client_for(sandbox).snapshot(  # act
            sandbox.public_id, image=build.image
        )
    except agent_errors.NotFound:
        build.template.delete()
        raise vanished(sandbox) from None
    except agent_errors.Unavailable as error:
        _put_back(sandbox)
        raise Unavailable(
            "The sandbox cannot be snapshotted right now because its node is busy, please retry",
            headers=RETRY,
        ) from error
    except agent_errors.AgentError as error:
        build.template.delete()
        _put_back(sandbox)
        raise AppError(
            f"Error creating snapshot: {error.message}", headers={"Should-Retry": "false"}
        ) from error
    _put_back(sandbox)
    build.status = BuildStatus.READY
    build.finished_at = build.updated_at = timezone.now()
    build.save(update_fields=["status", "size_bytes", "finished_at", "updated_at"])
    return build


def _hold_image(sandbox: Sandbox, *, now: datetime) -> TemplateBuild:
    """The build of an image that is about to be, under a template of its own that is in no list.

    Stored first, so that an image whose request dies, or whose node does not answer, is found and
    removed as unused. It also holds the image of forks until the last of them has ended.
    """
    origin = sandbox.build
    public_id = ids.new_uuid()
    image = f"{IMAGE_REPOSITORY}:{public_id}"
    assert sandbox.node is not None
    with transaction.atomic():
        holder = Template.objects.create(
            team=sandbox.team,
            kind=TemplateKind.FORK,
            source_sandbox_id=sandbox.public_id,
            created_at=now,
            updated_at=now,
            deleted_at=now,
        )
        return TemplateBuild.objects.create(
            template=holder,
            public_id=public_id,
            status=BuildStatus.ERROR,  # until it is ready; the loops of builds leave it alone
            image=image,
            image_id=image,
            node_id=sandbox.node.node_id,
            cpu_count=sandbox.cpu_count,
            memory_mb=sandbox.memory_mb,
            disk_size_mb=sandbox.disk_size_mb,
            start_cmd=origin.start_cmd,
            ready_cmd=origin.ready_cmd,
            default_user=origin.default_user,
            workdir=origin.workdir,
            env=origin.env,
            envd_version=sandbox.envd_version,
            pool_size=0,
            created_at=now,
            updated_at=now,
        )


def _put_back(sandbox: Sandbox) -> None:
    try:
        transition(sandbox, to=State.RUNNING, now=timezone.now())
    except Conflict:
        return  # a kill or a pause was faster


def fork_sandbox(
    *,
    sandbox: Sandbox,
    count: int,
    timeout_seconds: int,
    now: datetime,
    key: APIKey | None = None,
    user: User | None = None,
) -> list[Sandbox | AppError]:
    """`count` new sandboxes with the files of this one: for each, it or why it failed.

    Raises: InvalidArgument, NotFound, Conflict, QuotaExceeded, Unavailable before any fork starts.
    """
    team_limits = limits.limits_for(sandbox.team, now=now)
    if count < 1:
        raise InvalidArgument("Count must be at least 1")
    if count > MAX_FORKS:
        raise InvalidArgument(f"Count cannot be greater than {MAX_FORKS}")
    if count >= team_limits.max_concurrent:
        raise InvalidArgument(
            "Count must be lower than the maximum number of concurrent sandboxes"
            f" ({team_limits.max_concurrent})"
        )
    if timeout_seconds <= 0:
        raise InvalidArgument("Timeout must be greater than 0")
    limits.check_length(team_limits, timeout_seconds)
    if sandbox.state == State.PAUSED:
        raise Conflict(
            f"Sandbox '{sandbox.public_id}' is paused and cannot be forked; resume it first"
        )
    if Sandbox.objects.filter(team=sandbox.team).active().count() >= team_limits.max_concurrent:
        raise QuotaExceeded(
            "you have reached the maximum number of concurrent E2B sandboxes"
            f" ({team_limits.max_concurrent}).",
            headers={"Should-Retry": "false"},
        )
    build = _take(sandbox, verb="forked")
    resolved = ResolvedTemplate(template=sandbox.template, build=build, alias=sandbox.alias)
    options = CreateOptions(
        timeout_seconds=timeout_seconds,
        on_timeout=Sandbox.OnTimeout(sandbox.on_timeout),
        auto_pause_memory=sandbox.auto_pause_memory,
        auto_resume=sandbox.auto_resume,
        is_secure=sandbox.is_secure,
        allow_internet_access=sandbox.allow_internet_access,
        network=sandbox.network,
        metadata=sandbox.metadata if sandbox.has_metadata else None,
        env_vars=sandbox.env_vars,
    )

    def one(_: int) -> Sandbox | AppError:
        fork = new_row(
            team=sandbox.team,
            resolved=resolved,
            options=options,
            max_length_seconds=team_limits.max_length_seconds,
            now=timezone.now(),
            key=key,
            user=user,
        )
        try:
            start(fork, build, now=timezone.now())
        except AppError as error:
            return error
        return fork

    if count == 1 or connection.in_atomic_block:
        return [one(index) for index in range(count)]
    with ThreadPoolExecutor(min(count, FORKS_AT_ONCE)) as threads:
        return list(threads.map(_with_own_connection(one), range(count)))


def _with_own_connection(work: Any) -> Any:
    """These threads end with the request, so their connections must too."""

    def run(index: int) -> Any:
        try:
            return work(index)
        finally:
            connection.close()

    return run
