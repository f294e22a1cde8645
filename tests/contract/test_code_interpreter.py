"""The official code interpreter SDK, unmodified, on the whole stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops import sdks, templates
from tests.contract.outcomes import SuiteRun, python_cases, run_suite
from tests.stack import Stack

SUITE = Path(__file__).parent / "e2b_code_interpreter"


@pytest.fixture(scope="module")
def suite(stack: Stack, tmp_path_factory) -> SuiteRun:
    templates.ensure_recipe("code-interpreter-v1")
    templates.register(stack.deployment, "code-interpreter-v1", pool_size=1)
    report = tmp_path_factory.mktemp("code-interpreter") / "report.xml"
    python = sdks.ensure_code_interpreter() / "bin/python"
    words = [str(python), "-m", "pytest", "-q", "-c", "pytest.ini", "--rootdir", "."]
    words += ["--confcutdir", ".", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    return run_suite(words, cwd=SUITE, env=stack.process_env(), report=report)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("case", python_cases(SUITE))
def test_code_interpreter(suite: SuiteRun, case: str) -> None:
    suite.check(case)
