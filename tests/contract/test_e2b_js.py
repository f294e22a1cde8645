"""The official JavaScript SDK, unmodified, against the whole stack."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ops import sdks
from ops.shell import VENV
from tests.contract.outcomes import SuiteRun, run_suite
from tests.stack import Stack

SUITE = Path(__file__).parent / "e2b_js/suite.mjs"
CASES = re.findall(r"^test\('([^']+)'", SUITE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def suite(stack: Stack, tmp_path_factory) -> SuiteRun:
    report = tmp_path_factory.mktemp("e2b-js") / "report.xml"
    words = [str(VENV / "bin/node"), "--test", "--test-timeout=60000", "--test-reporter=junit"]
    words += [f"--test-reporter-destination={report}", str(SUITE)]
    folder = sdks.ensure_js(sdks.newest_js())
    return run_suite(words, cwd=folder, env=stack.process_env(), report=report)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_e2b_js(suite: SuiteRun, case: str) -> None:
    suite.check(f"test::{case}")
