"""`python3 -m ops COMMAND`: the commands behind the Makefile."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable

from ops import check, doctor, engine, packages, processes, stack, templates, testing, tls
from ops.deployment import Deployment
from ops.shell import OpsError, paint, say, step


def up(deployment: Deployment, _: list[str]) -> int:
    """Install, start, wait until healthy; stay in front until Ctrl-C (DETACH=1: return)."""
    if stack.is_up(deployment):
        stack.wait_until_healthy(deployment)
        say(stack.banner(deployment))
        say("\nIt was running already; `make down` stops it.")
        return 0
    # A terminal that closes, or a `kill`, ends us like Ctrl-C does: in order.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        stack.install()
        stack.prepare(deployment)
        stack.collect_static(deployment)
        if report(deployment, only_problems=True):
            raise OpsError("this machine is not fit yet; `make doctor` shows all of it")
        stack.start(deployment)
    except BaseException:
        engine.stop_engine_we_started(deployment)
        raise
    if os.environ.get("DETACH") == "1":
        say(stack.banner(deployment))
        return 0
    return _stay_in_front(deployment)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _stay_in_front(deployment: Deployment) -> int:
    follower = processes.LogFollower(deployment)
    follower.start()
    try:
        say(stack.banner(deployment) + "\nCtrl-C stops it.\n")
        while stack.is_up(deployment):
            signal.sigtimedwait([], 0.5)
        say("Stopped from outside.")
    except KeyboardInterrupt:
        say("")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # once is enough; stopping is bounded
        down(deployment, [])
    finally:
        follower.stop()
    return 0


def down(deployment: Deployment, _: list[str]) -> int:
    """Stop everything `up` started; containers too, unless KEEP=1."""
    with step("Stopping Sandlot" + (", keeping sandboxes" if deployment.keeps_containers else "")):
        did = stack.take_down(deployment, keep_containers=deployment.keeps_containers)
    if not deployment.keeps_containers:
        engine.stop_engine_we_started(deployment)
    say("Stopped." if did else "Nothing was running.")
    return 0


def reset(deployment: Deployment, _: list[str]) -> int:
    """Stop, then forget everything: database, keys, logs, sandboxes. Asks first, unless YES=1."""
    if os.environ.get("YES") != "1":
        say(f"This deletes {deployment.state_dir}: all users, keys and sandboxes.")
        if not sys.stdin.isatty() or input("Type yes to go on: ").strip() != "yes":
            say("Nothing was changed. (YES=1 skips the question.)")
            return 1
    stack.take_down(deployment)
    stack.remove_networks(deployment)
    engine.stop_engine_we_started(deployment)
    shutil.rmtree(deployment.state_dir, ignore_errors=True)
    say(f"Forgot {deployment.state_dir}.")
    return 0


def env(deployment: Deployment, words: list[str]) -> int:
    """Print the SDK's settings for a user as export lines; makes user, team and key if missing."""
    parser = argparse.ArgumentParser(prog="make env")
    parser.add_argument("--email", required=True)
    email = parser.parse_args(words).email
    if not email:
        raise OpsError("say who: make env EMAIL=me@example.com")
    if not deployment.secrets_file.exists():
        raise OpsError("there is nothing here yet: run `make up` first")
    for name, value in stack.account_env(deployment, email).items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    return 0


def make_tls(deployment: Deployment, _: list[str]) -> int:
    """Make a certificate authority and a wildcard certificate; `make up` then serves HTTPS."""
    domain = deployment.domain if deployment.environ.get("SANDLOT_DOMAIN") else ""
    domain = domain or tls.domain_of(deployment.tls_dir) or "sandlot.localhost"
    tls.check_domain(domain)
    packages.ensure_debian_packages({"openssl": "openssl", "ca-certificates": "/etc/ssl/certs"})
    deployment.prepare_state_dir()
    made = tls.ensure_certificate(deployment.tls_dir, domain)
    say(
        f"{'Made' if made else 'There is already'} a certificate for {domain} and *.{domain} in "
        f"{deployment.tls_dir}.\n"
        f"`make up` uses it: https://{domain}, port {deployment.tls_port} (SANDLOT_TLS_PORT).\n"
        f"The names must lead here; *.localhost does, where libnss-myhostname or systemd-resolved "
        f"is installed.\n"
        f"Browsers must be told to trust {deployment.tls_dir / 'ca.crt'}; `make env` tells SDKs."
    )
    return 0


def report(deployment: Deployment, *, only_problems: bool = False) -> bool:
    """Print what the doctor found. Returns whether anything fails."""
    failed = False
    for finding in doctor.examine(deployment):
        failed = failed or finding.level == doctor.Level.FAIL
        if only_problems and finding.level != doctor.Level.OK:
            say(finding.line())
        elif not only_problems:
            sys.stdout.write(finding.line() + "\n")
            sys.stdout.flush()
    return failed


def run_doctor(deployment: Deployment, _: list[str]) -> int:
    """Is this machine fit? One line each: OK, or what is wrong and how to fix it."""
    return 1 if report(deployment) else 0


def status(deployment: Deployment, _: list[str]) -> int:
    """What runs."""
    if not stack.is_up(deployment):
        say("Sandlot is not running.")
        return 1
    stack.say_state(deployment)
    say(f"sandboxes and warm containers: {len(stack.containers(deployment))}")
    return 0


def assets(_deployment: Deployment, _: list[str]) -> int:
    """Copy the dashboard's browser libraries out of npm packages."""
    packages.ensure_venv()
    packages.ensure_assets()
    return 0


def make_templates(deployment: Deployment, words: list[str]) -> int:
    """Build and register the platform's other templates, all of them or those named."""
    if not deployment.secrets_file.exists():
        raise OpsError("there is nothing here yet: run `make up` first")
    templates.ensure_templates(deployment, words)
    return 0


COMMANDS: dict[str, Callable[[Deployment, list[str]], int]] = {
    "up": up,
    "down": down,
    "reset": reset,
    "env": env,
    "tls": make_tls,
    "doctor": run_doctor,
    "status": status,
    "check": check.run_checks,
    "fmt": check.format_code,
    "test": testing.run_tests,
    "bench": testing.run_benches,
    "assets": assets,
    "templates": make_templates,
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        say(f"usage: python3 -m ops {{{','.join(COMMANDS)}}}")
        return 2
    try:
        return COMMANDS[sys.argv[1]](Deployment.from_environment(), sys.argv[2:])
    except OpsError as error:
        say(f"{paint('error:', 'red')} {error}")
        return 1
    except KeyboardInterrupt:
        say("\nStopped by you; nothing was left running.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
