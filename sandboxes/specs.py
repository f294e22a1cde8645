"""Rows as the messages that nodes understand. Query-free."""

from __future__ import annotations

from typing import Any

from nodeagent import wire
from sandboxes.models import Sandbox
from sandboxes.tokens import envd_access_token, traffic_access_token
from templates_app.models import TemplateBuild


def network_config(sandbox: Sandbox) -> wire.NetworkConfig:
    return network_of(sandbox.network, sandbox.allow_internet_access)


def network_of(
    network: dict[str, Any] | None, allow_internet_access: bool | None
) -> wire.NetworkConfig:
    given = network or {}
    return wire.NetworkConfig(
        allow_internet_access=allow_internet_access,
        allow_out=list(given.get("allowOut") or []),
        deny_out=list(given.get("denyOut") or []),
        allow_public_traffic=given.get("allowPublicTraffic") is not False,
        mask_request_host=given.get("maskRequestHost"),
    )


def create_spec(sandbox: Sandbox, build: TemplateBuild) -> wire.CreateSandbox:
    return wire.CreateSandbox(
        sandbox_id=sandbox.public_id,
        team_id=str(sandbox.team.public_id),
        template_id=sandbox.template.public_id,
        build_id=str(build.public_id),
        image=build.image,
        cpu_count=sandbox.cpu_count,
        memory_mb=sandbox.memory_mb,
        disk_size_mb=sandbox.disk_size_mb,
        timeout_seconds=float(sandbox.timeout_seconds),
        max_length_seconds=float(sandbox.max_length_seconds),
        on_timeout=wire.OnTimeout(sandbox.on_timeout),
        auto_pause_memory=sandbox.auto_pause_memory,
        auto_resume=sandbox.auto_resume,
        env_vars=sandbox.env_vars,
        envd_access_token=envd_access_token(sandbox),
        traffic_access_token=traffic_access_token(sandbox),
        network=network_config(sandbox),
        start_cmd=build.start_cmd,
        ready_cmd=build.ready_cmd,
        default_user=build.default_user,
        default_workdir=build.workdir,
        template_env=build.env if build.start_env is None else build.start_env,
        start_user=build.start_user,
        start_workdir=build.start_workdir,
    )


def pool_spec(build: TemplateBuild, *, size: int) -> wire.PoolSpec:
    return wire.PoolSpec(
        template_id=build.template.public_id,
        build_id=str(build.public_id),
        image=build.image,
        cpu_count=build.cpu_count,
        memory_mb=build.memory_mb,
        disk_size_mb=build.disk_size_mb,
        size=size,
        start_cmd=build.start_cmd,
        ready_cmd=build.ready_cmd,
        default_user=build.default_user,
        default_workdir=build.workdir,
        template_env=build.env if build.start_env is None else build.start_env,
        start_user=build.start_user,
        start_workdir=build.start_workdir,
    )
