"""Run a suite of another test runner once; tell each of its cases as a test of ours."""

from __future__ import annotations

import ast
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest


def python_cases(folder: Path) -> list[str]:
    """Every test function of the files in `folder`, read without importing the SDK they use."""
    cases = []
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and node.name.startswith("test_"):
                cases.append(f"{path.stem}::{node.name}")
    return cases


@dataclass(frozen=True)
class Outcome:
    is_failed: bool
    text: str


class SuiteRun:
    """What a finished run said, by case; parametrised variants of a case count together."""

    def __init__(self, *, output: str, report: Path) -> None:
        self.output = output
        self._outcomes: dict[str, list[Outcome]] = {}
        if not report.exists():
            return
        for case in ET.parse(report).getroot().iter("testcase"):
            problems = [child for child in case if child.tag in ("failure", "error")]
            name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name', '')}"
            text = "\n".join(child.text or "" for child in problems)
            outcome = Outcome(bool(problems), f"{case.get('name')}\n{text}")
            self._outcomes.setdefault(name.partition("[")[0], []).append(outcome)

    def check(self, case: str) -> None:
        """Fail when the case failed, or never ran."""
        outcomes = self._outcomes.get(case)
        if not outcomes:
            pytest.fail(f"{case} did not run:\n{self.output[-4000:]}", pytrace=False)
        failed = [outcome.text for outcome in outcomes if outcome.is_failed]
        if failed:
            pytest.fail("\n\n".join(failed), pytrace=False)


def run_suite(command: list[str], *, cwd: Path, env: dict[str, str], report: Path) -> SuiteRun:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    return SuiteRun(output=done.stdout, report=report)
