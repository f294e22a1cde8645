"""`python -m nodeagent`: the agent of this machine. SIGTERM drains it; sandboxes run on.

`python -m nodeagent purge`: remove the node's containers, network and packet filter rules instead.
What the state directory says of sandboxes stays; the next agent reports their end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from functools import partial

import uvloop

from nodeagent.agent import Agent
from nodeagent.build_report import HttpBuildOffice
from nodeagent.builder import Builder
from nodeagent.envd.adoption import adopt
from nodeagent.errors import AgentError
from nodeagent.gateway import Gateway, GatewaySettings
from nodeagent.heartbeat import HttpControlPlane
from nodeagent.netpolicy import IptablesFirewall, host_resolvers, uninstall
from nodeagent.records import StateStore
from nodeagent.remote import HttpPeers
from nodeagent.runtime.docker import DockerRuntime, bridge_name, purge
from nodeagent.runtime.images import DockerImages
from nodeagent.server import AgentServer
from nodeagent.settings import Settings

logger = logging.getLogger("nodeagent")


def main() -> int:
    try:
        settings = Settings.from_environment()
    except AgentError as error:
        print(f"nodeagent: {error}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
        return 2
    _set_up_logging(settings)
    if sys.argv[1:] == ["purge"]:
        return _purge(settings)
    try:
        uvloop.run(run(settings))
    except ExceptionGroup as group:  # side tasks of the agent that failed
        expected, other = group.split((AgentError, OSError))
        for cause in expected.exceptions if expected else ():
            logger.error("The agent stops: %s", cause)
        if other is not None:
            raise other from None
        return 1
    except (AgentError, OSError) as error:
        logger.error("The agent stops: %s", error)
        return 1
    return 0


def _purge(settings: Settings) -> int:
    try:
        count = purge(settings.node_id)
        uninstall(settings.node_id, bridge_name(settings.node_id))
    except AgentError as error:
        logger.error("Not all could be removed: %s", error)
        return 1
    logger.info("Removed %d containers, the network, images and rules of the node.", count)
    return 0


async def run(settings: Settings) -> None:
    """Wire the parts together and serve until a signal comes."""
    store = StateStore(settings.node_dir)
    runtime = DockerRuntime(
        node_id=settings.node_id,
        run_dir=store.run_dir,
        state_dir=settings.state_dir,
        pids_limit=settings.pids_limit,
        docker_runtime=settings.docker_runtime,
        dns_servers=settings.dns_servers,
    )
    firewall = IptablesFirewall(
        node_id=settings.node_id,
        bridge=lambda: runtime.bridge,
        resolvers=host_resolvers(settings.dns_servers),
        exceptions=settings.egress_exceptions,
        blocks_smtp=settings.blocks_smtp,
    )
    office = HttpBuildOffice(settings.control_plane_url, settings.node_id, settings.token)
    builder = Builder(
        node_id=settings.node_id,
        folder=settings.node_dir / "builds",
        runtime=runtime,
        images=DockerImages(settings.image_aliases),
        office=office,
        concurrency=settings.build_concurrency,
    )
    agent = Agent(
        settings,
        builder=builder,
        runtime=runtime,
        firewall=firewall,
        control_plane=HttpControlPlane(settings.control_plane_url, settings.token),
        adopt_data_plane=adopt,
    )
    gateway = Gateway(
        agent,
        GatewaySettings(
            host=settings.gateway_host,
            port=settings.gateway_port,
            tls_cert=settings.tls_cert,
            tls_key=settings.tls_key,
            tls_port=settings.tls_port,
            domain=settings.domain,
            control_plane_url=settings.control_plane_url,
            max_connections=settings.max_connections,
        ),
        HttpPeers(settings.control_plane_url, node_id=settings.node_id, token=settings.token),
    )
    gateway.bind()  # at once: clients of running sandboxes wait, and are not refused, meanwhile
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(_stop, agent, number))
    logger.info(
        "Node %s: API at %s, gateway at %s.",
        settings.node_id,
        settings.api_url,
        settings.gateway_url,
    )
    await agent.run([AgentServer(agent), gateway])


def _stop(agent: Agent, number: signal.Signals) -> None:
    logger.info("Stopping on %s; sandboxes keep running.", number.name)
    agent.stopping.set()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("sandbox_id", "team_id", "node_id", "request_id", "action"):
            if hasattr(record, name):
                line[name] = getattr(record, name)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _set_up_logging(settings: Settings) -> None:
    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(_JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # heartbeat says it in our words
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


if __name__ == "__main__":
    raise SystemExit(main())
