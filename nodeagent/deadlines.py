"""When each sandbox ends: a heap of instants, with stale entries skipped when they come up."""

from __future__ import annotations

import heapq


class Deadlines:
    """Instants are Unix seconds. Setting one again replaces it; no clock inside."""

    def __init__(self) -> None:
        self._end_at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._end_at)

    def set(self, sandbox_id: str, end_at: float) -> None:
        self._end_at[sandbox_id] = end_at
        heapq.heappush(self._heap, (end_at, sandbox_id))
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._end_at):
            # A client that moves its deadline with every call must not grow the heap.
            self._heap = [(instant, name) for name, instant in self._end_at.items()]
            heapq.heapify(self._heap)

    def discard(self, sandbox_id: str) -> None:
        self._end_at.pop(sandbox_id, None)

    def next_at(self) -> float | None:
        self._skip_stale()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> list[str]:
        """The sandboxes whose instant has come, earliest first; each is forgotten."""
        due = []
        while (next_at := self.next_at()) is not None and next_at <= now:
            _, sandbox_id = heapq.heappop(self._heap)
            del self._end_at[sandbox_id]
            due.append(sandbox_id)
        return due

    def _skip_stale(self) -> None:
        while self._heap and self._end_at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
