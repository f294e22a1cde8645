"""Run `1+1` in the code interpreter through its official SDK, against a running stack.

<python with e2b-code-interpreter> bench/run_code.py [--rounds N], with E2B_* set by `make env`
"""

from __future__ import annotations

import argparse
import time

from e2b_code_interpreter import Sandbox
from figures import compare


def timed(sandbox: Sandbox) -> float:
    began = time.perf_counter()
    assert sandbox.run_code("1+1").text == "2"
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rest", type=float, default=5.0, help="seconds between creates")
    options = parser.parse_args()
    created: list[float] = []
    first: list[float] = []
    later: list[float] = []
    for _ in range(options.rounds):
        began = time.perf_counter()
        sandbox = Sandbox.create(timeout=60)
        created.append(time.perf_counter() - began)
        first.append(timed(sandbox))
        later += [timed(sandbox) for _ in range(10)]
        sandbox.kill()
        time.sleep(options.rest)
    print("\nTargets on 2 cores: first run p50 60 ms after create, later ones p50 15 ms.")
    compare({"create": sorted(created), "first run": sorted(first), "later runs": sorted(later)})


if __name__ == "__main__":
    main()
