"""A whole deployment: bring it up, see that it is healthy, take it down."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import subprocess
import time

from ops import engine, images, packages, processes, tls
from ops.deployment import Deployment
from ops.shell import REPOSITORY, VENV, OpsError, ask, run, say, step

NODE_LABEL = "sandlot.node"
SNIPPET = (
    "from e2b import Sandbox; s = Sandbox.create(); "
    "print(s.commands.run('echo hello').stdout); s.kill()"
)


def install() -> None:
    """Everything a run needs that does not depend on the deployment."""
    packages.ensure_debian_packages(packages.RUN_PACKAGES)
    packages.ensure_venv()
    packages.ensure_assets()


# One process for all: starting Django takes longer than most of what it is started for.
_PREPARE = """
import sys, django
from django.core.management import call_command
django.setup()
call_command("migrate", interactive=False, verbosity=0)
call_command("ensure_template", name="base", image=sys.argv[1], public=True)
"""


def prepare(deployment: Deployment) -> None:
    """Secrets, image, database: all safe to repeat."""
    deployment.prepare_state_dir()
    if deployment.has_own_authority:
        tls.ensure_certificate(deployment.tls_dir, deployment.domain)  # it may have run out
    engine.ensure_engine(deployment)
    images.ensure_base_image(deployment.environ)
    with step("Preparing the database"):
        _django(deployment, ["-c", _PREPARE, images.BASE_IMAGE], name="preparing the database")


def collect_static(deployment: Deployment) -> None:
    """Copy the dashboard's files to where web serves them; they belong to the clone."""
    # django_htmx brings htmx too; we serve our own, and its modules do not resolve once hashed.
    words = ("--noinput", "--verbosity", "0", "--ignore", "django_htmx")
    with step("Collecting the dashboard's files"):
        manage(deployment, "collectstatic", *words)


def manage(deployment: Deployment, *words: str) -> str:
    """Run a Django command in this deployment; returns its stdout."""
    return _django(deployment, ["manage.py", *words], name=f"manage.py {words[0]}")


def _django(deployment: Deployment, words: list[str], *, name: str) -> str:
    done = subprocess.run(
        [VENV / "bin/python", *words],
        cwd=REPOSITORY,
        env=deployment.process_environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-15:])
        raise OpsError(f"{name} failed with exit code {done.returncode}\n{tail}")
    return done.stdout


def check_ports(deployment: Deployment) -> None:
    """Raises: OpsError naming the port that is taken, and the setting that moves ours."""
    for name, port in deployment.ports.items():
        owner = processes.whose_port(port)
        if owner:
            raise OpsError(
                f"port {port} is taken by {owner}.\n"
                f"  Stop it, or choose another: SANDLOT_{name.upper()}_PORT=<port> make up"
            )


def start(deployment: Deployment, *, timeout: float = 120) -> None:
    """Start the processes and wait until a sandbox could be created; stop them if that fails."""
    check_ports(deployment)
    with step("Starting web, worker and agent"):
        processes.start(deployment)
        try:
            wait_until_healthy(deployment, timeout=timeout)
        except BaseException:
            take_down(deployment)
            raise


def wait_until_healthy(deployment: Deployment, *, timeout: float = 120) -> None:
    """Raises: OpsError with the ends of the logs."""
    deadline = time.monotonic() + timeout
    missing = "everything"
    while time.monotonic() < deadline:
        missing = what_is_missing(deployment)
        if not missing:
            return
        if processes.supervisor_pid(deployment) is None:
            missing = "the processes: supervisord has ended"
            break
        time.sleep(0.2)
    raise OpsError(f"not healthy: {missing}\n{processes.all_logs(deployment)}")


def what_is_missing(deployment: Deployment) -> str:
    """What is not ready yet, in words; empty when a sandbox can be created now."""
    if _get(deployment.web_port, "/health")[0] != 200:
        return "web does not answer /health"
    status, node = _get(deployment.agent_port, "/v1/node", token=node_token(deployment))
    if status != 200:
        return f"the agent's API answers {status or 'nothing'}"
    if _get(deployment.gateway_port, "/health")[0] == 0:
        return "the gateway does not answer"
    wants_pool = deployment.environ.get("SANDLOT_POOL_SIZE", "") != "0"
    if wants_pool and not sum(json.loads(node)["warm"].values()):
        return "no warm sandbox yet"
    return ""


def node_token(deployment: Deployment) -> str:
    """The token web and agent derive too: see nodeagent.settings.derive_node_token."""
    secret = ""
    for line in deployment.secrets_file.read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "SANDLOT_NODE_SECRET":
            secret = value
    secret = deployment.environ.get("SANDLOT_NODE_SECRET") or secret
    mac = hmac.new(secret.encode(), f"node:{deployment.node_id}".encode(), hashlib.sha256)
    return deployment.environ.get("SANDLOT_NODE_TOKEN") or f"sln_{mac.hexdigest()}"


def _get(port: int, path: str, *, token: str = "") -> tuple[int, bytes]:
    """Status and body; (0, b"") when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def take_down(deployment: Deployment, *, keep_containers: bool = False) -> bool:
    """Stop the processes, then remove the sandboxes' containers. Returns whether there were any."""
    did = processes.stop(deployment)
    if not keep_containers and engine.info() is not None:
        did = remove_containers(deployment) or did
    return did


def remove_containers(deployment: Deployment) -> bool:
    """Remove every container that this deployment's node made."""
    found = containers(deployment)
    if found:
        run(["docker", "rm", "--force", "--volumes", *found])
    return bool(found)


def remove_networks(deployment: Deployment) -> None:
    """Remove the bridge and the packet filter rules that this deployment's node made."""
    subprocess.run(
        [VENV / "bin/python", "-m", "nodeagent", "purge"],
        cwd=REPOSITORY,
        env=deployment.process_environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def containers(deployment: Deployment) -> list[str]:
    label = f"label={NODE_LABEL}={deployment.node_id}"
    return (ask(["docker", "ps", "--all", "--quiet", "--filter", label]) or "").split()


def account_env(deployment: Deployment, email: str) -> dict[str, str]:
    """The SDK's variables for a user, who is created (with team and key) if missing."""
    lines = manage(deployment, "ensure_account", "--email", email, "--print-env").splitlines()
    pairs = (line.removeprefix("export ").partition("=") for line in lines if line)
    found = {name: value.strip("'\"") for name, _, value in pairs}
    if not deployment.has_tls:
        return found
    # Clients build every URL from the domain.
    found = {"E2B_API_KEY": found["E2B_API_KEY"], "E2B_DOMAIN": deployment.client_domain}
    if deployment.has_own_authority:
        found["SSL_CERT_FILE"] = str(deployment.tls_dir / "bundle.crt")
        found["NODE_EXTRA_CA_CERTS"] = str(deployment.tls_dir / "ca.crt")
    return found


def banner(deployment: Deployment) -> str:
    return f"""
Sandlot is up.

  Dashboard   {deployment.web_url}
  API         {deployment.api_url}
  Sandboxes   {deployment.gateway_url}

Run code from another shell:

  eval "$(make -s env EMAIL=me@example.com)"
  python3 -m venv /tmp/try && /tmp/try/bin/pip install -q e2b
  /tmp/try/bin/python -c "{SNIPPET}"

Logs: {deployment.logs_dir}"""


def is_up(deployment: Deployment) -> bool:
    return processes.supervisor_pid(deployment) is not None


def say_state(deployment: Deployment) -> None:
    say(processes.control(deployment, "status"))
