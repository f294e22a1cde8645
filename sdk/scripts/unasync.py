"""Write `src/sandlot/_sync/` from `_async/` by replacing tokens; `--check` only compares."""

from __future__ import annotations

import re
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "sandlot"

REPLACEMENTS = [
    (r"^import asyncio\n", ""),
    (r"\bawait asyncio\.sleep\(", "time.sleep("),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bsandlot\._async\b", "sandlot._sync"),
    (r"\bhttpx\.AsyncClient\b", "httpx.Client"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAsyncExitStack\b", "ExitStack"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\benter_async_context\b", "enter_context"),
    (r"\baiter_raw\b", "iter_raw"),
    (r"\b(aclose|aread)\b", lambda match: match.group()[1:]),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"\bAsync(Command|Commands|Files|Sandbox|Transport)\b", r"\1"),
    (r"`async with`", "`with`"),
]


def to_sync(text: str) -> str:
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    if left := re.search(r"\b(async|await|Async\w+|asyncio)\b", text):
        raise SystemExit(f"no rule for {left.group()!r} in: {text[left.start() :].splitlines()[0]}")
    return text


def main() -> int:
    stale = []
    wanted = {path.name: to_sync(path.read_text()) for path in (SOURCE / "_async").glob("*.py")}
    for path in (SOURCE / "_sync").glob("*.py"):
        if path.name not in wanted:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.unlink()
    for name, text in wanted.items():
        path = SOURCE / "_sync" / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"out of date, run scripts/unasync.py: {', '.join(sorted(stale))}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
