"""Build a template of five steps through the official SDK, beside `docker build` of the same.

    <python with e2b> bench/build.py [--rounds N], with E2B_* set by `make env`

Cold: no layer is cached but the base, which all templates share. Cached: the same recipe again. All
need no network. Times are until the template is ready, and until `docker build` returns.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from e2b import Template
from figures import compare

DOCKERFILE = """
FROM sandlot/base:latest
ENV MARK={mark}
RUN echo $MARK > /tmp/mark && mkdir -p /srv/app
WORKDIR /srv/app
RUN python3 -c "open('data', 'wb').write(bytes(5_000_000))"
RUN sha256sum data > sum
"""


def template(mark: str) -> Template:
    return (
        Template()
        .from_base_image()
        .set_envs({"MARK": mark})
        .run_cmd("echo $MARK > /tmp/mark")
        .set_workdir("/srv/app")
        .run_cmd("python3 -c \"open('data', 'wb').write(bytes(5_000_000))\"")
        .run_cmd("sha256sum data > sum")
    )


def ours(mark: str) -> float:
    began = time.perf_counter()
    Template.build(template(mark), f"bench-{mark}", cpu_count=1, memory_mb=512)
    return time.perf_counter() - began


def dockers(folder: Path, mark: str) -> float:
    (folder / "Dockerfile").write_text(DOCKERFILE.format(mark=mark))
    began = time.perf_counter()
    subprocess.run(
        ["docker", "build", "-q", "-t", f"bench-{mark}", folder], check=True, capture_output=True
    )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ours(uuid.uuid4().hex[:8])  # prepares the base
    rows: dict[str, list[float]] = {
        "docker build, cold": [],
        "template, cold": [],
        "docker build, cached": [],
        "template, cached": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            mark = uuid.uuid4().hex[:8]
            rows["docker build, cold"].append(dockers(Path(folder), mark))
            rows["template, cold"].append(ours(mark))
            rows["docker build, cached"].append(dockers(Path(folder), mark))
            rows["template, cached"].append(ours(mark))
            subprocess.run(["docker", "rmi", f"bench-{mark}"], check=False, capture_output=True)
    print("\nTarget: cached at most 5 s to ready.")
    compare({name: sorted(taken) for name, taken in rows.items()})


if __name__ == "__main__":
    main()
