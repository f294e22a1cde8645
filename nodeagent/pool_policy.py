"""How many warm containers to keep: a pure function of recent demand."""

from __future__ import annotations

import math
from collections.abc import Sequence

BURST_SECONDS = (
    10.0  # about what refilling a handful takes: demand within it must be met from stock
)
HALF_LIFE_SECONDS = 300.0


def wanted_size(claimed_at: Sequence[float], *, now: float, floor: int, ceiling: int) -> int:
    """The largest burst of late, counting less the longer ago it was, within floor and ceiling.

    claimed_at: instants of claims, oldest first, hits and misses alike. A floor above the ceiling
    wins: it is what the operator asked for by name.
    """
    wanted = 0.0
    first = 0
    for last, at in enumerate(claimed_at):
        while claimed_at[first] <= at - BURST_SECONDS:
            first += 1
        burst = last - first + 1
        weight = 0.5 ** (max(0.0, now - at) / HALF_LIFE_SECONDS)
        wanted = max(wanted, burst * weight)
    # A lone claim long ago decays to a sliver; rounding it up would keep one container for ever.
    return max(floor, min(ceiling, math.ceil(wanted - 0.25)))
