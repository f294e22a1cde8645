"""An independent account of what should be billed: plain lists and fractions, none of billing's
code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

VCPU_SECOND, GIB_SECOND = Fraction("0.000014"), Fraction("0.0000045")


@dataclass
class Stretch:
    """Running from `start` to `end` (ms), with a size."""

    start: int
    vcpu: int
    memory: int
    end: int | None = None


@dataclass
class TrueSandbox:
    team: int
    vcpu: int
    memory: int
    stretches: list[Stretch] = field(default_factory=list)
    state: str = "running"  # running, paused, lost, ended
    proof: int = 0  # when it was last known to live

    def run(self, at: int) -> None:
        self.state = "running"
        self.proof = at
        self.stretches.append(Stretch(at, self.vcpu, self.memory))

    def stop(self, at: int, state: str) -> None:
        if self.state == "running":
            self.stretches[-1].end = at
        self.state = state

    def last_end(self) -> int:
        return self.stretches[-1].end or 0


@dataclass
class Truth:
    """Prices as (from_ms, factor): the list price times a factor, from an instant on."""

    sandboxes: dict[str, TrueSandbox] = field(default_factory=dict)
    factors: list[tuple[int, Fraction]] = field(default_factory=lambda: [(0, Fraction(1))])

    def running_ms(self, sandbox_id: str, now: int) -> int:
        rows = self.sandboxes[sandbox_id].stretches
        return sum((now if s.end is None else s.end) - s.start for s in rows)

    def cost(self, team: int, now: int) -> Fraction:
        total = Fraction(0)
        for sandbox in self.sandboxes.values():
            if sandbox.team != team:
                continue
            for stretch in sandbox.stretches:
                total += self._cost(stretch, now if stretch.end is None else stretch.end)
        return total

    def _cost(self, stretch: Stretch, end: int) -> Fraction:
        total = Fraction(0)
        bounds = [at for at, _ in self.factors[1:]] + [end]
        for (begin, factor), stop in zip(self.factors, bounds, strict=True):
            ms = max(min(stop, end) - max(begin, stretch.start), 0)
            # Only vCPU changes its price here; memory keeps it.
            vcpu = Fraction(ms * stretch.vcpu, 1000) * VCPU_SECOND * factor
            memory = Fraction(ms * stretch.memory, 1000 * 1024) * GIB_SECOND
            total += vcpu + memory
        return total
