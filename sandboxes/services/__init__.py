"""Business verbs on sandboxes."""

from sandboxes.services.control import (
    connect_sandbox,
    kill_sandbox,
    pause_sandbox,
    refresh_sandbox,
    resume_sandbox,
    set_network,
    set_timeout,
)
from sandboxes.services.create import CreateOptions, create_sandbox
from sandboxes.services.snapshots import fork_sandbox, snapshot_sandbox

__all__ = [
    "CreateOptions",
    "connect_sandbox",
    "create_sandbox",
    "fork_sandbox",
    "kill_sandbox",
    "pause_sandbox",
    "refresh_sandbox",
    "resume_sandbox",
    "set_network",
    "set_timeout",
    "snapshot_sandbox",
]
