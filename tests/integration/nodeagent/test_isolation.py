"""What code in a sandbox cannot do: to the host, to its neighbours, to the network around."""

import contextlib
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nodeagent.guest.bundle import CAPABILITIES
from nodeagent.wire import NetworkConfig
from tests.integration.nodeagent.conftest import until

pytestmark = pytest.mark.docker

# x86-64 numbers and arguments that would succeed, or fail in another way, without the filter.
REFUSED_CALLS = {
    "mount": (165, 0, 0, 0, 0, 0),
    "unshare(CLONE_NEWUSER)": (272, 0x10000000),
    "setns": (308, 0, 0),
    "clone3": (435, 0, 0),
    "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "userfaultfd": (323, 0),
    "io_uring_setup": (425, 1, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "keyctl": (250, 0, 0),
    "open_by_handle_at": (304, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "reboot": (169, 0, 0, 0),
    "open_tree": (428, 0, 0, 0),
    "socket(AF_PACKET)": (41, 17, 3, 0),
    "socket(AF_VSOCK)": (41, 40, 1, 0),
    "socket(AF_ALG)": (41, 38, 5, 0),
}

REFUSALS = {"1", "38"}  # EPERM, and ENOSYS for what libraries have another way for


@pytest.fixture(scope="module")
def sandbox(agent) -> str:
    return agent.create(timeout_seconds=600)


@pytest.fixture(scope="module")
def neighbour(agent) -> str:
    return agent.create(timeout_seconds=600)


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_) -> None: ...


@pytest.fixture(scope="module")
def host_port() -> Iterator[int]:
    """A service of the host on every address, as a database or the agent itself might be."""
    server = ThreadingHTTPServer(("0.0.0.0", 0), _Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


class OutsideHost:
    """A machine beyond the host, in a network namespace, with one address of each kind."""

    PUBLIC, OTHER_PUBLIC = "11.77.1.2", "11.77.1.6"
    REFUSED = ("10.77.1.2", "100.64.77.2", "169.254.169.254", "172.31.77.2", "192.168.77.2")

    def __init__(self) -> None:
        self.name = f"sl{secrets.token_hex(3)}"
        ip(f"netns add {self.name}")
        ip(f"link add {self.name} type veth peer name eth0 netns {self.name}")
        ip(f"addr add 11.77.1.1/29 dev {self.name}")
        ip(f"link set {self.name} up")
        inside = f"-n {self.name}"
        ip(f"{inside} addr add {self.PUBLIC}/29 dev eth0")
        ip(f"{inside} addr add {self.OTHER_PUBLIC}/29 dev eth0")
        ip(f"{inside} link set lo up")
        ip(f"{inside} link set eth0 up")
        ip(f"{inside} route add default via 11.77.1.1")
        for address in self.REFUSED:
            ip(f"{inside} addr add {address}/32 dev eth0")
            ip(f"route add {address}/32 dev {self.name}")
        self.server = subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-m", "http.server", "80"],
            cwd="/proc/self/ns",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: is_open(self.PUBLIC, 80))

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        subprocess.run(["ip", "link", "del", self.name], check=False, capture_output=True)
        ip(f"netns del {self.name}")


@pytest.fixture(scope="module")
def outside() -> Iterator[OutsideHost]:
    host = OutsideHost()
    yield host
    host.close()


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


def is_open(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), 2):
        return True
    return False


def reaches(agent, sandbox_id: str, url: str) -> bool:
    code, _ = agent.run(sandbox_id, f"curl --silent --max-time 3 --noproxy '*' {url}")
    return code == 0


# -- powers


def test_it_has_the_few_capabilities_of_the_list(agent, sandbox):
    _, text = agent.run(sandbox, "grep -E 'Cap(Eff|Bnd)' /proc/self/status")
    numbers = {
        "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6,
        "SETUID": 7, "SETPCAP": 8, "NET_BIND_SERVICE": 10, "SYS_CHROOT": 18, "AUDIT_WRITE": 29,
        "SETFCAP": 31,
    }  # fmt: skip
    expected = sum(1 << numbers[name] for name in CAPABILITIES)
    assert {int(line.split()[1], 16) for line in text.splitlines()} == {expected}


def test_what_those_capabilities_are_for_works(agent, sandbox):
    program = (
        "set -e; useradd -m newbie; touch /root/f; chown newbie /root/f;"
        "su user -c 'sudo -n id -u'; su user -c 'ping -c1 -W2 127.0.0.1 > /dev/null'"
    )
    assert agent.run(sandbox, program) == (0, "0")


def test_the_filter_refuses_dangerous_calls_even_to_root(agent, sandbox):
    program = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, call in {REFUSED_CALLS!r}.items():\n"
        "    result = libc.syscall(*map(ctypes.c_long, call))\n"
        "    print(name, ctypes.get_errno() if result < 0 else 'DONE')\n"
    )
    code, text = agent.run(sandbox, f"python3 - <<'END'\n{program}END")
    assert code == 0
    answers = dict(line.rsplit(" ", 1) for line in text.splitlines())
    assert set(answers) == set(REFUSED_CALLS)
    assert {name for name, errno in answers.items() if errno not in REFUSALS} == set()


def test_it_cannot_touch_the_kernels_settings(agent, sandbox):
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/mm/ksm/run"):
        assert agent.run(sandbox, f"echo x > {path}")[0] != 0
    assert agent.run(sandbox, "mknod /tmp/disk b 8 0")[0] != 0
    # What tells of the machine is empty, where the machine has it at all.
    assert agent.run(sandbox, "find /sys/firmware /sys/devices/virtual/dmi -mindepth 1")[1] in (
        "",
        "find: \u2018/sys/devices/virtual/dmi\u2019: No such file or directory",
        "find: '/sys/devices/virtual/dmi': No such file or directory",
    )


def test_only_the_guests_own_directories_of_the_host_are_mounted(agent, sandbox):
    _, text = agent.run(sandbox, "cat /proc/self/mountinfo")
    mounts = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        mounts[before.split()[4]] = (after.split()[0], before.split()[5].split(","))
    virtual = {"overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}
    from_host = {path: options for path, (kind, options) in mounts.items() if kind not in virtual}
    assert set(from_host) <= {
        "/.sandlot",
        "/.sandlot/run",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/proc/sys/kernel/random/boot_id",
    }
    for path in ("/.sandlot", "/.sandlot/run", "/proc/sys/kernel/random/boot_id"):
        assert "ro" in from_host[path]
    assert agent.run(sandbox, "touch /.sandlot/x")[0] != 0
    assert agent.run(sandbox, "touch /.sandlot/run/x")[0] != 0


def test_no_engine_is_in_reach(agent, sandbox):
    _, sockets = agent.run(sandbox, "find / -xdev -type s; find /.sandlot -type s")
    assert sockets.split() == ["/.sandlot/run/guest.sock"]
    assert agent.run(sandbox, "cat < /.sandlot/run/guest.sock", user="user")[0] != 0
    assert not agent.inspect(sandbox)["HostConfig"]["Privileged"]


def test_its_name_tells_neighbours_nothing(agent, sandbox, neighbour):
    """The engine's resolver answers who a neighbour's address belongs to."""
    address = agent.inspect(sandbox)["NetworkSettings"]["Networks"]
    (network,) = address.values()
    _, text = agent.run(neighbour, f"getent hosts {network['IPAddress']} || true")
    assert sandbox not in text
    assert sandbox not in agent.inspect(sandbox)["Name"]


# -- network


def test_it_reaches_no_service_of_the_host(agent, sandbox, host_port):
    assert is_open("127.0.0.1", host_port)
    networks = agent.inspect(sandbox)["NetworkSettings"]["Networks"]
    gateway = next(iter(networks.values()))["Gateway"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.254", 9))  # sends nothing; asks for the route
        own = probe.getsockname()[0]
    for address in {gateway, own, "172.17.0.1"}:
        for port in (host_port, agent.api_port, agent.gateway_port, 22, 2375):
            assert not reaches(agent, sandbox, f"http://{address}:{port}/")


def test_it_reaches_the_public_network_and_no_private_one(agent, sandbox, outside):
    assert reaches(agent, sandbox, f"http://{outside.PUBLIC}/")
    for address in outside.REFUSED:
        assert is_open(address, 80), "the host itself reaches it"
        assert not reaches(agent, sandbox, f"http://{address}/"), address
    assert not reaches(agent, sandbox, "http://11.77.1.1/")  # an address of the host's own


def test_neighbours_do_not_reach_each_other(agent, sandbox, neighbour):
    serve = "setsid python3 -m http.server 8000 --directory /tmp > /dev/null 2>&1 &"
    agent.run(neighbour, serve)
    until(lambda: reaches(agent, neighbour, "http://127.0.0.1:8000/"))
    networks = agent.inspect(neighbour)["NetworkSettings"]["Networks"]
    address = next(iter(networks.values()))["IPAddress"]
    assert reaches(agent, neighbour, f"http://{address}:8000/")
    assert not reaches(agent, sandbox, f"http://{address}:8000/")
    # Not even its link-layer address: the bridge keeps its ports apart.
    agent.run(sandbox, f"ping -c1 -W1 {address}")
    _, table = agent.run(sandbox, f"ip neigh show {address}")
    assert "lladdr" not in table


def test_there_is_no_ipv6_but_its_own_loopback(agent, sandbox):
    _, text = agent.run(sandbox, "cat /proc/net/if_inet6")
    assert [line.split()[-1] for line in text.splitlines()] == ["lo"]


def test_mail_is_not_sent_from_here(agent, sandbox):
    chain_rules = [line for line in agent.rules() if "--dport 25 " in line]
    assert chain_rules
    assert all("REJECT" in line for line in chain_rules)


def test_rules_of_one_sandbox(agent, outside):
    first, second = f"http://{outside.PUBLIC}/", f"http://{outside.OTHER_PUBLIC}/"

    shut = agent.create(network=NetworkConfig(allow_internet_access=False))
    assert not reaches(agent, shut, first)
    code, _ = agent.run(shut, "timeout 3 getent hosts example.com")
    assert code != 0  # names too: a resolver is a way out

    one = agent.create(network=NetworkConfig(allow_out=[outside.PUBLIC], deny_out=["0.0.0.0/0"]))
    assert reaches(agent, one, first)
    assert not reaches(agent, one, second)

    agent.client.put_network(one, NetworkConfig(deny_out=[f"{outside.PUBLIC}/32"]))
    assert not reaches(agent, one, first)
    assert reaches(agent, one, second)

    agent.client.put_network(one, NetworkConfig())
    assert reaches(agent, one, first)

    agent.client.put_network(one, NetworkConfig(allow_out=["0.0.0.0/0"], deny_out=["1.1.1.1"]))
    assert not reaches(agent, one, f"http://{outside.REFUSED[0]}/")  # allowing opens no private one

    agent.client.put_network(one, NetworkConfig(deny_out=["0.0.0.0/0"]))
    agent.client.pause(one, memory=False)
    agent.client.resume(one, timeout_seconds=60)
    assert not reaches(agent, one, first)

    for sandbox_id in (shut, one):
        agent.client.kill(sandbox_id)
    until(lambda: not [line for line in agent.rules() if "0.0.0.0/0" in line or "-S -s" in line])
