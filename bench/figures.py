"""Measuring and printing, shared by the benches that compare us with plain Docker."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def measure(
    name: str, action: Callable[[], float], rounds: int, *, rest: float = 0.0
) -> list[float]:
    """Seconds that `action` says it took, in order of size, after two rounds that warm up."""
    print(f"measuring {name}, {rounds} rounds", flush=True)
    taken = []
    for number in range(rounds + 2):
        seconds = action()
        if number >= 2:
            taken.append(seconds)
        time.sleep(rest)
    return sorted(taken)


def compare(rows: dict[str, list[float]]) -> None:
    """A line a row: p50, p95, and how many times faster than the first row it is."""
    reference = statistics.median(next(iter(rows.values())))
    for name, taken in rows.items():
        p50 = statistics.median(taken)
        p95 = taken[min(len(taken) - 1, int(len(taken) * 0.95))]
        ratio = f"{reference / p50:5.1f} x" if p50 != reference else "      -"
        print(f"{name:<20} p50 {p50 * 1000:7.1f} ms   p95 {p95 * 1000:7.1f} ms   {ratio}")


if __name__ == "__main__":
    raise SystemExit("run create.py or command.py")
