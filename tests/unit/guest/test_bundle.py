from __future__ import annotations

import subprocess

import pytest

from nodeagent.guest.bundle import GUEST_MODULES, MOUNT, build_bundle, command


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def bundle(state_dir):
    return build_bundle(state_dir)


def test_it_is_made_once(state_dir, bundle):
    assert build_bundle(state_dir) == bundle
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    assert list((bundle / "run").iterdir()) == []


def test_its_interpreter_runs_every_module_of_the_guest_from_the_bundle_alone(bundle):
    words = [word.replace(MOUNT, str(bundle)) for word in command()][:-1]
    imports = ", ".join(f"nodeagent.guest.{name}" for name in GUEST_MODULES)
    files = "(m.__file__ for m in sys.modules.values() if hasattr(m, '__file__'))"
    script = f"import {imports}, sys; print(*{files})"

    done = subprocess.run(
        [*words, "-c", script], capture_output=True, text=True, env={}, check=True
    )

    assert all(path.startswith(str(bundle)) for path in done.stdout.split())


def test_what_every_sandbox_pays_for_stays_small(bundle):
    words = [word.replace(MOUNT, str(bundle)) for word in command()][:-1]
    script = "import nodeagent.guest.guest, sys; print(*sys.modules)"

    done = subprocess.run(
        [*words, "-c", script], capture_output=True, text=True, env={}, check=True
    )

    heavy = {
        "re",
        "enum",
        "typing",
        "json",
        "socket",
        "signal",
        "ctypes",
        "collections",
        "functools",
    }
    assert not heavy & set(done.stdout.split())
