"""One sandbox as its node sees it, shared by the gateway, envd and the agent's side tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from nodeagent.guest.link import GuestLink
from nodeagent.wire import CreateSandbox, MetricSample, NodeSandboxState


@dataclass(eq=False, kw_only=True)
class LiveSandbox:
    """A sandbox of this node. Only the agent changes `state`; the gateway routes if `is_routable`.

    `aborts`: one callback per open data-plane stream; each resets its connection (TCP RST or HTTP/2
    RST_STREAM), which is how clients learn that a sandbox was killed or paused under them.
    """

    spec: CreateSandbox
    container_id: str
    link: GuestLink
    state: NodeSandboxState
    started_at: float
    end_at: float
    paused_at: float | None = None
    keeps_memory: bool = True
    is_routable: bool = True
    aborts: set[Callable[[], None]] = field(default_factory=set)
    envd: Any = None  # nodeagent.envd's per-sandbox state (processes, watchers); set by envd.adopt

    @property
    def sandbox_id(self) -> str:
        return self.spec.sandbox_id

    def env(self) -> dict[str, str]:
        """Sandbox-level variables of every process; the E2B ones win over the user's."""
        return {
            **self.spec.env_vars,
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": self.spec.sandbox_id,
            "E2B_TEMPLATE_ID": self.spec.template_id,
        }

    def unroute(self) -> None:
        """Stop routing, then reset open streams, in this order: clients probe /health at once."""
        self.is_routable = False
        for abort in list(self.aborts):
            abort()
        self.aborts.clear()


class Node(Protocol):
    """What the gateway needs of the agent."""

    def find(self, sandbox_id: str) -> LiveSandbox | None:
        """The sandbox, in any state, or None when this node does not have it."""

    def all(self) -> Iterable[LiveSandbox]:
        """Every sandbox of the node: a signed file URL that names none is tried against each."""

    def log(self, sandbox: LiveSandbox, level: str, message: str, fields: dict[str, Any]) -> None:
        """Add a line to the sandbox's log: a process started, ended. Must not block."""

    async def sample(self, sandbox: LiveSandbox) -> MetricSample:
        """What the sandbox uses right now; `cpu_used_pct` since its previous sample."""

    async def wake(self, sandbox: LiveSandbox) -> None:
        """Resume a paused sandbox because traffic came; the caller has checked the credentials.

        Raises: NotFound when it may not be woken (no auto-resume, no memory, being killed),
        Conflict when still in transition after the wait, QuotaExceeded when the team is at its
        limit.
        """
