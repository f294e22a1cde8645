"""The code interpreter over plain HTTP: streams, contexts, variables, interrupts, deaths."""

from __future__ import annotations

import concurrent.futures
import json
import threading
import time

import httpx
import pytest

# The first test may have to wait for the image to be built.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]


def test_a_run_counts_outputs_and_ends(interpreter):
    context = interpreter.create_context()
    done = interpreter.run("print('a'); 1 + 1", context_id=context)
    assert done.types == ["number_of_executions", "stdout", "result", "end_of_execution"]
    assert (done.count, done.stdout, done.text) == (1, ["a\n"], "2")
    assert done.results[0] == {
        "type": "result",
        "text": "2",
        "extra": {},
        "is_main_result": True,
    }
    assert interpreter.run("def", context_id=context).count == 2
    assert interpreter.run("", context_id=context).types[0] == "number_of_executions"


def test_the_default_contexts_come_first(interpreter):
    first, second, *_ = interpreter.contexts()
    assert (first["language"], first["cwd"]) == ("python", "/home/user")
    assert second["language"] == "javascript"


def test_state_is_kept_in_a_context_and_not_shared(interpreter):
    one, two = interpreter.create_context(), interpreter.create_context(language=" Python ")
    interpreter.run("x = 5", context_id=one)
    assert interpreter.run("x", context_id=one).text == "5"
    assert interpreter.run("x", context_id=two).error["name"] == "NameError"
    assert [item["id"] for item in interpreter.contexts()[-2:]] == [one, two]


def test_restart_keeps_the_id_and_clears_the_state(interpreter):
    context = interpreter.create_context(cwd="/root")
    interpreter.run("x = 5", context_id=context)
    answer = interpreter.http.post(f"/contexts/{context}/restart")
    assert (answer.status_code, answer.text) == (200, "null")
    again = interpreter.run("import os; print(os.getcwd()); x", context_id=context)
    assert (again.count, again.stdout) == (1, ["/root\n"])
    assert (again.error["name"], again.error["value"]) == (
        "NameError",
        "name 'x' is not defined",
    )


def test_removed_contexts_are_gone(interpreter):
    context = interpreter.create_context()
    pid = interpreter.run("import os; os.getpid()", context_id=context).text
    assert interpreter.http.delete(f"/contexts/{context}").text == "null"
    assert context not in [item["id"] for item in interpreter.contexts()]
    answer = interpreter.http.post("/execute", json={"code": "1", "context_id": context})
    assert (answer.status_code, answer.text) == (404, f"Context {context} not found")
    assert interpreter.http.delete(f"/contexts/{context}").status_code == 404
    assert interpreter.http.post(f"/contexts/{context}/restart").status_code == 404
    assert interpreter.sh(f"kill -0 {pid} 2>/dev/null || echo gone") == "gone"


def test_a_removed_default_context_is_made_again(interpreter):
    typescript = interpreter.run("1", language="ts")
    assert typescript.text == "1"
    (context,) = [c for c in interpreter.contexts() if c["language"] == "typescript"]
    interpreter.http.delete(f"/contexts/{context['id']}")
    assert interpreter.run("2", language="typescript").text == "2"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"code": "1", "context_id": "a", "language": "b"}, 400, "Only one of context_id"),
        ({"code": "1", "context_id": "nope"}, 404, "Context nope not found"),
        ({"code": "1", "language": "cobol"}, 500, "language 'cobol' is not supported"),
        ({}, 422, "code"),
        ({"code": 5}, 422, "code"),
        ({"code": "1", "env_vars": {"A": 1}}, 422, "env_vars"),
        ({"code": "1", "env_vars": {"A=B": "1"}}, 422, "env_vars"),
        ([], 422, "object"),
    ],
)
def test_bad_requests_are_refused(interpreter, body, status, text):
    answer = interpreter.http.post("/execute", json=body)
    assert answer.status_code == status
    assert text in answer.text


def test_a_missing_directory_makes_no_context(interpreter):
    before = interpreter.contexts()
    for language in ("python", "javascript", "bash"):
        answer = interpreter.http.post("/contexts", json={"cwd": "/nope", "language": language})
        assert (answer.status_code, "/nope" in answer.text) == (500, True)
    assert interpreter.contexts() == before
    assert interpreter.sh("ls -d /nope 2>/dev/null || echo none") == "none"


def test_browsers_may_call_it(interpreter):
    answer = interpreter.http.options(
        "/execute", headers={"Origin": "http://x", "Access-Control-Request-Method": "POST"}
    )
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == "*"
    assert interpreter.http.get("/contexts?source=x").headers["access-control-allow-origin"] == "*"


def test_runs_of_one_context_take_turns_and_contexts_do_not_wait(interpreter):
    one, two = interpreter.create_context(), interpreter.create_context()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        code = "import time; time.sleep({}); time.monotonic()"
        slow = pool.submit(interpreter.run, code.format(0.8), context_id=one)
        time.sleep(0.2)  # so that the first has the turn
        queued = pool.submit(interpreter.run, code.format(0), context_id=one)
        other = pool.submit(interpreter.run, code.format(0), context_id=two)
        assert float(other.result().text) < float(slow.result().text) < float(queued.result().text)
        assert queued.result().count == 2


def test_headers_come_before_the_code_has_run_and_keepalives_after(interpreter):
    started = time.monotonic()
    body = {"code": "import time; time.sleep(5.6); print('x')"}
    context = interpreter.create_context()
    with interpreter.http.stream(
        "POST", "/execute", json={**body, "context_id": context}
    ) as answer:
        assert time.monotonic() - started < 4
        kinds = [json.loads(line)["type"] for line in answer.iter_lines()]
    assert kinds == ["number_of_executions", "keepalive", "stdout", "end_of_execution"]


LANGUAGES = ["python", "javascript", "typescript", "bash", "r", "java"]
GET_ENV = {
    "python": "import os; print(os.getenv('{0}'))",
    "javascript": "console.log(process.env.{0})",
    "typescript": "console.log(process.env.{0} as string)",
    "bash": 'echo "${0}"',
    "r": "cat(Sys.getenv('{0}', unset=NA), '\\n', sep='')",
    "java": 'System.out.println(System.getProperty("{0}"));',
}
ABSENT = {"python": "None", "javascript": "undefined", "typescript": "undefined", "bash": "",
          "r": "NA", "java": "null"}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_variables_at_both_levels(interpreter, language):
    def get(name, **body):
        code = GET_ENV[language].replace("{0}", name)
        done = interpreter.run(code, language=language, **body)
        assert done.error is None
        return "".join(done.stdout).strip("\n")

    tricky = "q\"'$(echo no)`x`\\n\ttab\nsecond ü"
    assert get("SANDBOX_WIDE") == "from create"
    assert get("QUOTED") == "a\"b'c\n$(x) `y`"
    assert get("ONCE", env_vars={"ONCE": tricky}) == tricky
    assert get("ONCE") == ABSENT[language]
    assert get("SANDBOX_WIDE", env_vars={"SANDBOX_WIDE": "mine"}) == "mine"
    assert get("SANDBOX_WIDE") == "from create"


def test_variables_leave_no_trace_in_the_session(interpreter):
    context = interpreter.create_context()
    done = interpreter.run("os", context_id=context, env_vars={"A": "1"})
    assert (done.count, done.error["name"]) == (1, "NameError")
    done = interpreter.run("%%bash\necho $A", context_id=context, env_vars={"A": "magic"})
    assert done.stdout == ["magic\n"]
    done = interpreter.run("x = 1\n1 / 0\n", context_id=context, env_vars={"A": "1"})
    assert "line 2" in done.error["traceback"]


def test_a_disconnect_interrupts_the_run_and_keeps_the_state(interpreter):
    context = interpreter.create_context()
    interpreter.run("kept = 1", context_id=context)
    slow = {
        "code": "import time\ntry:\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  kept = 2\n",
        "context_id": context,
        "env_vars": {"A": "1"},
    }
    with pytest.raises(httpx.ReadTimeout):
        interpreter.http.post("/execute", json=slow, timeout=httpx.Timeout(60, read=0.5))
    started = time.monotonic()
    assert interpreter.run("kept", context_id=context).text == "2"
    assert interpreter.run("import os; os.getenv('A')", context_id=context).text is None
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("language", "spin", "check", "expected"),
    [
        ("javascript", "let k = 1; while (true) {}", "typeof k", {"number", "undefined"}),
        ("javascript", "await new Promise(() => {})", "'alive'", {"alive"}),
        ("bash", "k=1; while :; do :; done", 'echo "k$k"', {"k1\n"}),
        ("bash", "k=1; sleep 60; echo after", 'echo "k$k"', {"k1\n"}),
        ("r", "Sys.sleep(60)", "cat('alive\n')", {"alive\n"}),
        ("python", "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
         "print('alive')", {"alive\n"}),
    ],
)  # fmt: skip
def test_every_language_answers_after_a_disconnect(interpreter, language, spin, check, expected):
    context = interpreter.create_context(language=language)
    body = {"code": spin, "context_id": context}
    with pytest.raises(httpx.ReadTimeout):
        interpreter.http.post("/execute", json=body, timeout=httpx.Timeout(60, read=0.5))
    done = interpreter.run(check, context_id=context)
    assert (done.text or "".join(done.stdout)) in expected
    interpreter.http.delete(f"/contexts/{context}")


def test_a_waiting_client_that_leaves_harms_nobody(interpreter):
    context = interpreter.create_context()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(
            interpreter.run, "import time; time.sleep(1.5); 'done'", context_id=context
        )
        time.sleep(0.3)
        with pytest.raises(httpx.ReadTimeout):
            interpreter.http.post(
                "/execute",
                json={"code": "skipped = True", "context_id": context},
                timeout=httpx.Timeout(60, read=0.3),
            )
        assert running.result().text == "done"
    assert interpreter.run("skipped", context_id=context).error["name"] == "NameError"


KILLERS = {
    "python": ("import os; os.kill(os.getpid(), 9)", "print('up')"),
    "javascript": ("process.kill(process.pid, 'SIGKILL'); while (true) {}", "console.log('up')"),
    "bash": ("kill -9 $$", "echo up"),
    "r": ("tools::pskill(Sys.getpid(), 9); Sys.sleep(9)", "cat('up\n')"),
    "java": ("ProcessHandle.current().pid(); Runtime.getRuntime().halt(1);",
             'System.out.println("up");'),
}  # fmt: skip


@pytest.mark.parametrize("language", KILLERS)
def test_a_kernel_that_dies_comes_back_under_the_same_id(interpreter, language):
    killer, check = KILLERS[language]
    context = interpreter.create_context(language=language, cwd="/tmp")
    done = interpreter.run(killer, context_id=context)
    assert done.error["name"] == "ContextRestarting"
    assert done.error["value"] == "Context was restarted"
    again = interpreter.run(check, context_id=context)
    assert ("".join(again.stdout), again.count) == ("up\n", 1)
    if language != "java":
        assert (
            interpreter.run(
                GET_ENV[language].replace("{0}", "SANDBOX_WIDE"), context_id=context
            ).stdout[0]
            == "from create\n"
        )
    interpreter.http.delete(f"/contexts/{context}")


def test_exit_ends_the_session_after_the_run(interpreter):
    context = interpreter.create_context()
    interpreter.run("x = 1; exit()", context_id=context)
    deadline = time.monotonic() + 10
    while interpreter.run("x", context_id=context).text == "1":
        assert time.monotonic() < deadline, "the session is still there"
    assert interpreter.run("1 + 1", context_id=context).text == "2"


@pytest.mark.parametrize("ending", ["restart", "delete"])
def test_ending_a_context_ends_its_run(interpreter, ending):
    context = interpreter.create_context()
    results = []
    runner = threading.Thread(
        target=lambda: results.append(
            interpreter.run(
                "print('on', flush=True)\nimport time; time.sleep(60)", context_id=context
            )
        )
    )
    runner.start()
    time.sleep(0.7)
    if ending == "restart":
        interpreter.http.post(f"/contexts/{context}/restart")
    else:
        interpreter.http.delete(f"/contexts/{context}")
    runner.join(10)
    assert results[0].error["name"] == "UnexpectedEndOfExecution"
    assert results[0].stdout == ["on\n"]


def test_large_output_arrives_whole_and_in_order(interpreter):
    done = interpreter.run("for i in range(200_000): print(i)")
    assert "".join(done.stdout) == "".join(f"{i}\n" for i in range(200_000))
    assert len(interpreter.run("'ü€😀' * 1_000_000").text) == 3_000_000
    lines = interpreter.run("for (let i = 0; i < 20000; i++) console.log(i)", language="js").stdout
    assert "".join(lines) == "".join(f"{i}\n" for i in range(20_000))
    lines = interpreter.run("seq 1 20000", language="bash").stdout
    assert lines == [f"{i}\n" for i in range(1, 20_001)]


def test_the_service_comes_back_when_it_is_killed(interpreter):
    pid = interpreter.sh("pgrep -f -- '-m interpreter' | head -1")
    interpreter.sh(f"kill -9 {pid}")
    deadline = time.monotonic() + 5
    while interpreter.sh(f"kill -0 {pid} 2>/dev/null && echo there || echo gone") != "gone":
        assert time.monotonic() < deadline
    interpreter.wait_until_healthy(30)
    assert interpreter.run("1 + 1").text == "2"
    kernels = interpreter.sh("pgrep -fc ipykernel_launcher")
    assert kernels == "1", "kernels of the dead service live on"


def test_it_runs_as_root_in_the_users_home(interpreter):
    done = interpreter.run("import os; print(os.getuid(), os.environ['HOME'], os.getcwd())")
    assert done.stdout == ["0 /root /home/user\n"]
