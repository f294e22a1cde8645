"""The official Python SDK, a pinned release and the newest, unmodified, on the whole stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops import sdks
from tests.contract.outcomes import SuiteRun, python_cases, run_suite
from tests.stack import Stack

SUITE = Path(__file__).parent / "e2b_python"


@pytest.fixture(scope="module", params=["pinned", "newest"])
def suite(request: pytest.FixtureRequest, stack: Stack, tmp_path_factory) -> SuiteRun:
    version = sdks.PINNED_PYTHON if request.param == "pinned" else sdks.newest_python()
    report = tmp_path_factory.mktemp("e2b-python") / f"{version}.xml"
    python = sdks.ensure_python(version) / "bin/python"
    words = [str(python), "-m", "pytest", "-q", "-c", "pytest.ini", "--rootdir", "."]
    words += ["--confcutdir", ".", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    return run_suite(words, cwd=SUITE, env=stack.process_env(), report=report)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", python_cases(SUITE))
def test_e2b_python(suite: SuiteRun, case: str) -> None:
    suite.check(case)
