"""Stopping what runs of teams that may spend no more. Billing says who; it never stops a
sandbox itself.
"""

from __future__ import annotations

import logging
from datetime import datetime

from billing.models.accounts import StopAction
from billing.services.spend import Overdrawn, overdrawn_teams
from config.errors import AppError
from sandboxes.lifecycle import EndReason, State
from sandboxes.models import Sandbox
from sandboxes.services import kill_sandbox, pause_sandbox

logger = logging.getLogger(__name__)


def stop_overdrawn(*, now: datetime) -> int:
    """Pause, or kill where the owner chose so. Returns how many sandboxes stopped; the rest is
    tried again.
    """
    return sum(_stop_team(team, now=now) for team in overdrawn_teams())


def _stop_team(team: Overdrawn, *, now: datetime) -> int:
    running = Sandbox.objects.filter(team_id=team.team_id, state=State.RUNNING)
    count = 0
    for sandbox in running.select_related("node", "template", "team"):
        try:
            if team.action == StopAction.KILL_RUNNING:
                kill_sandbox(sandbox=sandbox, now=now, reason=EndReason.OUT_OF_CREDIT)
            else:
                pause_sandbox(sandbox=sandbox, now=now)
            count += 1
        except AppError as error:
            logger.warning(
                "An overdrawn team's sandbox did not stop: %s",
                error.message,
                extra={"sandbox_id": sandbox.public_id, "team_id": team.team_id},
            )
    if count:
        logger.info("Stopped %d sandboxes: %s", count, team.reason, extra={"team_id": team.team_id})
    return count
