"""Code run in a sandbox of code-interpreter-v1 through the official SDK."""

from __future__ import annotations

import threading
import time

import pytest
from e2b import InvalidArgumentException, NotFoundException, TimeoutException
from e2b_code_interpreter import AsyncSandbox, Sandbox


def test_values_state_and_counts(shared: Sandbox) -> None:
    context = shared.create_code_context()
    assert shared.run_code("x = 1; x", context=context).text == "1"
    again = shared.run_code("x += 1; x", context=context)
    assert (again.text, again.execution_count) == ("2", 2)
    shared.remove_code_context(context)


def test_callbacks_are_called_once_each(shared: Sandbox) -> None:
    heard: list[object] = []
    shared.run_code("print('out')", on_stdout=lambda m: heard.append(m.line))
    shared.run_code(
        "import sys; print('err', file=sys.stderr)", on_stderr=lambda m: heard.append(m.line)
    )
    shared.run_code("2 + 2", on_result=lambda r: heard.append(r.text))
    shared.run_code("undefined_name", on_error=lambda e: heard.append(e.name))
    assert heard == ["out\n", "err\n", "4", "NameError"]


def test_a_plot_has_its_chart(shared: Sandbox) -> None:
    done = shared.run_code(
        "import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1, 2], label='g')\nplt.show()\n'v'"
    )
    plot, value = done.results
    assert (plot.chart.type.value, plot.extra, value.text) == ("bar", {}, "v")
    assert [(e.label, e.value, e.group) for e in plot.chart.elements] == [
        ("a", 1, "g"),
        ("b", 2, "g"),
    ]
    assert plot.png


def test_a_data_frame_has_its_data(shared: Sandbox) -> None:
    done = shared.run_code("import pandas as pd; pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})")
    assert done.results[0].data == {"a": [1, 2], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("language", "code", "first_line"),
    [
        ("js", "console.log('x')", "x\n"),
        ("ts", "const n: number = 1; console.log(n)", "1\n"),
        ("bash", "echo x", "x\n"),
        ("r", "print('x')", '[1] "x"\n'),
        ("java", 'System.out.println("x")', "x"),
    ],
)
def test_languages(shared: Sandbox, language: str, code: str, first_line: str) -> None:
    done = shared.run_code(code, language=language)
    assert done.error is None
    assert done.logs.stdout[0] == first_line


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import os; print(os.getenv('{0}'))"),
        ("js", "console.log(process.env['{0}'])"),
        ("bash", 'echo "${0}"'),
    ],
)
def test_variables_of_the_sandbox_and_of_a_run(shared: Sandbox, language: str, code: str) -> None:
    def get(name: str, **envs: str) -> str:
        done = shared.run_code(code.replace("{0}", name), language=language, envs=envs)
        return done.logs.stdout[0].strip()

    assert get("FROM_CREATE") == "here"
    assert get("FROM_CREATE", FROM_CREATE="mine") == "mine"
    assert get("FROM_CREATE") == "here"
    assert get("ONCE", ONCE="now") == "now"
    assert get("ONCE") in ("None", "undefined", "")


def test_contexts(shared: Sandbox) -> None:
    context = shared.create_code_context(cwd="/root", language="python")
    last = shared.list_code_contexts()[-1]
    assert (last.id, last.language, last.cwd) == (context.id, "python", "/root")
    shared.run_code("y = 1", context=context)
    shared.restart_code_context(context)
    assert shared.run_code("y", context=context).error.name == "NameError"
    with pytest.raises(InvalidArgumentException):
        shared.run_code("1", context=context, language="python")
    shared.remove_code_context(context)
    assert context.id not in [item.id for item in shared.list_code_contexts()]
    with pytest.raises(NotFoundException):
        shared.run_code("1", context=context)


def test_a_timeout_interrupts_and_the_context_goes_on(shared: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        shared.run_code("import time; time.sleep(60)", timeout=1)
    began = time.monotonic()
    assert shared.run_code("7").text == "7"
    assert time.monotonic() - began < 10


def test_a_sandbox_killed_in_mid_run_says_so() -> None:
    sandbox = Sandbox.create(timeout=60)
    killer = threading.Timer(1.0, sandbox.kill)
    killer.start()
    with pytest.raises(TimeoutException, match="sandbox was killed while the request was in"):
        sandbox.run_code("import time; time.sleep(60)")
    killer.join()


def test_private_sandboxes() -> None:
    sandbox = Sandbox.create(timeout=60, network={"allow_public_traffic": False})
    try:
        assert sandbox.run_code("1 + 1").text == "2"
        assert len(sandbox.list_code_contexts()) == 2
    finally:
        sandbox.kill()


def test_the_service_is_there_when_create_returns() -> None:
    sandbox = Sandbox.create(timeout=30)
    try:
        shown = sandbox.commands.run("curl -s http://localhost:49999/health").stdout
        assert shown == '"OK"'
    finally:
        sandbox.kill()


async def test_the_asynchronous_twin() -> None:
    sandbox = await AsyncSandbox.create(timeout=60)
    try:
        done = await sandbox.run_code("print('hi'); 'end'")
        assert (done.logs.stdout, done.text) == (["hi\n"], "end")
    finally:
        await sandbox.kill()
