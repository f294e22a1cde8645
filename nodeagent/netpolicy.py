"""What a sandbox may reach: packet filter rules in chains of the node's own.

The node's bridge enters two chains. INPUT's refuses the host itself. FORWARD's (by way of the
engine's DOCKER-USER) lets answers pass, then asks the chain of the sandbox, where it has one, then
refuses whatever is not the public internet. Sandboxes without rules of their own need nothing when
they are made.

    FORWARD -> <node>-F:  established -> sandbox chains -> <node>-B
    <node>-B (base):      resolvers pass; private, link-local and special ranges refused; rest
    passes
    sandbox chain:        allowed ranges -> <node>-B; denied ranges refused

So a sandbox's allow list beats its deny list, and neither opens what the base refuses. Denying
0.0.0.0/0 shuts name resolution too. IPv6 is off in the network and refused here as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from nodeagent.errors import InvalidArgument, Unavailable
from nodeagent.settings import EgressException
from nodeagent.wire import NetworkConfig

logger = logging.getLogger(__name__)

EVERYTHING = "0.0.0.0/0"
MAX_RULES = 256
COMMAND_SECONDS = 20.0

# Never the public internet (RFC 6890 and its successors), whatever a sandbox's rules say.
REFUSED_RANGES = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)


class Firewall(Protocol):
    """Rules by container. Every method returns when the rules are in force."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def apply(self, container_id: str, ip: str, network: NetworkConfig) -> None:
        """Replace the container's rules. Raises: InvalidArgument, Unavailable."""

    async def clear(self, container_id: str) -> None: ...

    async def restore(self, rules: Mapping[str, tuple[str, NetworkConfig]]) -> None:
        """Make these, container id -> (ip, network), the only ones."""

    async def verify(self) -> None:
        """Put back what somebody else's firewall may have flushed."""


def is_default(network: NetworkConfig) -> bool:
    """True when the base rules are all that is needed."""
    return network.allow_internet_access is not False and not network.deny_out


def validate_network(network: NetworkConfig) -> None:
    """Raises: InvalidArgument."""
    allowed_ranges(network)
    denied_ranges(network)


def allowed_ranges(network: NetworkConfig) -> list[str]:
    return _ranges(network.allow_out, "invalid allowed address")


def denied_ranges(network: NetworkConfig) -> list[str]:
    ranges = _ranges(network.deny_out, "invalid denied CIDR")
    if network.allow_internet_access is False and EVERYTHING not in ranges:
        ranges.append(EVERYTHING)
    return ranges


def _ranges(entries: Iterable[str], complaint: str) -> list[str]:
    """IPv4 ranges in canonical form; IPv6 ones are only checked: there is no IPv6 to filter."""
    ranges: list[str] = []
    entries = list(entries)
    if len(entries) > MAX_RULES:
        raise InvalidArgument(f"a sandbox can have at most {MAX_RULES} network rules of a kind")
    for entry in entries:
        try:
            found = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            if entry and not entry[0].isdigit() and complaint.endswith("address"):
                raise InvalidArgument(
                    f"{complaint} {entry}: rules by domain are not supported on this node"
                ) from None
            raise InvalidArgument(f"{complaint} {entry}") from None
        if found.version == 4 and str(found) not in ranges:
            ranges.append(str(found))
    return ranges


def chain_prefix(node_id: str) -> str:
    """Short, since a chain's name has 28 characters at most."""
    return "SL" + hashlib.sha256(node_id.encode()).hexdigest()[:8].upper()


def base_rules(
    prefix: str,
    *,
    resolvers: Sequence[str],
    exceptions: Sequence[EgressException],
    blocks_smtp: bool,
) -> list[str]:
    """Every rule of the node's own chains but those of sandboxes, as iptables-restore lines."""
    forward, base, host, boxes = (f"{prefix}-{end}" for end in "FBHS")
    refuse = [
        "-p tcp -j REJECT --reject-with tcp-reset",
        "-j REJECT --reject-with icmp-port-unreachable",
    ]
    answers = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"
    doors = [f"-d {item.cidr} -p tcp --dport {item.port} -j RETURN" for item in exceptions] + [
        f"-d {resolver} -p {protocol} --dport 53 -j RETURN"
        for resolver in resolvers
        for protocol in ("udp", "tcp")
    ]
    lines = [f":{chain} - [0:0]" for chain in (forward, base, host, boxes)]
    lines += [f"-A {forward} {answers}", f"-A {forward} -j {boxes}", f"-A {forward} -j {base}"]
    lines += [f"-A {base} {door}" for door in doors]
    for refused in REFUSED_RANGES:
        lines += [f"-A {base} -d {refused} {how}" for how in refuse]
    if blocks_smtp:
        lines.append(f"-A {base} -p tcp --dport 25 {refuse[0].removeprefix('-p tcp ')}")
    lines.append(f"-A {host} {answers}")
    lines += [f"-A {host} {door}" for door in doors]
    lines += [f"-A {host} {how}" for how in refuse]
    return lines


def sandbox_chain(prefix: str, container_id: str) -> str:
    return f"{prefix}-{container_id[:12]}"


def sandbox_rules(prefix: str, container_id: str, ip: str, network: NetworkConfig) -> list[str]:
    """The chain of one sandbox and the jump into it, as iptables-restore lines."""
    chain = sandbox_chain(prefix, container_id)
    lines = [f":{chain} - [0:0]"]
    lines += [f"-A {chain} -d {cidr} -g {prefix}-B" for cidr in allowed_ranges(network)]
    for cidr in denied_ranges(network):
        lines.append(f"-A {chain} -d {cidr} -p tcp -j REJECT --reject-with tcp-reset")
        lines.append(f"-A {chain} -d {cidr} -j REJECT --reject-with icmp-port-unreachable")
    lines.append(f"-A {prefix}-S -s {ip}/32 -j {chain}")
    return lines


def host_resolvers(configured: Sequence[str] = ()) -> list[str]:
    """The IPv4 resolvers sandboxes will ask: those configured, or the host's."""
    if configured:
        return [item for item in configured if ipaddress.ip_address(item).version == 4]
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        try:
            text = path.read_text()
        except OSError:
            continue
        found = []
        for line in text.splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                try:
                    address = ipaddress.ip_address(words[1].partition("%")[0])
                except ValueError:
                    continue
                if address.version == 4 and not address.is_loopback:
                    found.append(str(address))
        if found:
            return found
    return []  # the engine then gives its containers public resolvers


class IptablesFirewall:
    """Batches through iptables-restore, in a thread of its own: rules change one at a time.

    bridge: asked at `open`, when the runtime knows the name of the node's bridge.
    """

    def __init__(
        self,
        *,
        node_id: str,
        bridge: Callable[[], str],
        resolvers: Sequence[str],
        exceptions: Sequence[EgressException] = (),
        blocks_smtp: bool = True,
    ) -> None:
        self.prefix = chain_prefix(node_id)
        self._find_bridge = bridge
        self._bridge = ""
        self._resolvers = list(resolvers)
        self._exceptions = list(exceptions)
        self._blocks_smtp = blocks_smtp
        self._rules: dict[str, tuple[str, NetworkConfig]] = {}  # by container id
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="iptables")

    async def open(self) -> None:
        self._bridge = self._find_bridge()
        await self._call(self._install)

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def apply(self, container_id: str, ip: str, network: NetworkConfig) -> None:
        await self._call(self._apply, container_id, ip, network)

    async def clear(self, container_id: str) -> None:
        if container_id in self._rules:
            await self._call(self._clear, container_id)

    async def restore(self, rules: Mapping[str, tuple[str, NetworkConfig]]) -> None:
        await self._call(self._restore, dict(rules))

    async def verify(self) -> None:
        await self._call(self._verify)

    # -- blocking parts, in the thread ----------------------------------------------------------

    def _install(self) -> None:
        lines = base_rules(
            self.prefix,
            resolvers=self._resolvers,
            exceptions=self._exceptions,
            blocks_smtp=self._blocks_smtp,
        )
        for container_id, (ip, network) in self._rules.items():
            lines += sandbox_rules(self.prefix, container_id, ip, network)
        _restore("iptables", lines)
        _restore("ip6tables", [f":{self.prefix}-F - [0:0]", f"-A {self.prefix}-F -j DROP"])
        for program in ("iptables", "ip6tables"):
            for hook in reversed(_hooks(program, self.prefix, self._bridge)):
                if not _run([program, "-w", "5", "-C", *hook], check=False):
                    where, rule = hook[0], hook[1:]
                    _run([program, "-w", "5", "-I", where, "1", *rule])

    def _apply(self, container_id: str, ip: str, network: NetworkConfig) -> None:
        # An address may come back to us while its former owner is still being cleared away.
        stale = [
            other
            for other, (address, _) in self._rules.items()
            if address == ip or other == container_id
        ]
        lines = self._removal(stale)
        if not is_default(network):
            lines += sandbox_rules(self.prefix, container_id, ip, network)
        if lines:
            _restore("iptables", lines)
        for other in stale:
            del self._rules[other]
        if not is_default(network):
            self._rules[container_id] = (ip, network)

    def _clear(self, container_id: str) -> None:
        if container_id in self._rules:
            _restore("iptables", self._removal([container_id]))
            del self._rules[container_id]

    def _removal(self, container_ids: Sequence[str]) -> list[str]:
        lines = []
        for container_id in container_ids:
            ip, _ = self._rules[container_id]
            chain = sandbox_chain(self.prefix, container_id)
            lines += [f"-D {self.prefix}-S -s {ip}/32 -j {chain}", f"-F {chain}", f"-X {chain}"]
        return lines

    def _restore(self, rules: dict[str, tuple[str, NetworkConfig]]) -> None:
        self._rules = rules
        self._install()
        wanted = {sandbox_chain(self.prefix, container_id) for container_id in rules}
        strays = _chains("iptables", self.prefix)
        base = {f"{self.prefix}-{end}" for end in "FBHS"}
        lines = [
            line
            for chain in strays
            if chain not in wanted | base
            for line in (f"-F {chain}", f"-X {chain}")
        ]
        if lines:
            _restore("iptables", lines)

    def _verify(self) -> None:
        for program in ("iptables", "ip6tables"):
            for hook in _hooks(program, self.prefix, self._bridge):
                if not _run([program, "-w", "5", "-C", *hook], check=False):
                    logger.warning("The node's packet filter rules were gone; put back.")
                    self._install()
                    return

    async def _call(self, function: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def uninstall(node_id: str, bridge: str) -> None:
    """Remove every chain of a node and every way into them. Blocking. Raises: Unavailable."""
    prefix = chain_prefix(node_id)
    for program in ("iptables", "ip6tables"):
        for hook in _hooks(program, prefix, bridge):
            while _run([program, "-w", "5", "-D", *hook], check=False):
                pass
        chains = _chains(program, prefix)
        if chains:
            _restore(
                program,
                [f":{chain} - [0:0]" for chain in chains] + [f"-X {chain}" for chain in chains],
            )


def _chains(program: str, prefix: str) -> list[str]:
    listing = _output([program, "-w", "5", "-S"])
    return [line.split()[1] for line in listing.splitlines() if line.startswith(f"-N {prefix}-")]


def _hooks(program: str, prefix: str, bridge: str) -> list[list[str]]:
    """Where the chains are entered. Nothing from outside may open a connection to a sandbox."""
    if program == "ip6tables":
        return [
            ["FORWARD", "-i", bridge, "-j", f"{prefix}-F"],
            ["INPUT", "-i", bridge, "-j", f"{prefix}-F"],
        ]
    return [
        ["DOCKER-USER", "-i", bridge, "-j", f"{prefix}-F"],
        ["DOCKER-USER", "-o", bridge, "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"],
        ["INPUT", "-i", bridge, "-j", f"{prefix}-H"],
    ]


def _restore(program: str, lines: Sequence[str]) -> None:
    """One atomic change: all of it or nothing."""
    script = "\n".join(["*filter", *lines, "COMMIT", ""])
    _run([f"{program}-restore", "--noflush", "-w", "5"], script=script)


def _run(command: list[str], *, script: str | None = None, check: bool = True) -> bool:
    done = _execute(command, script)
    if check and done.returncode != 0:
        raise Unavailable(f"{command[0]} failed: {done.stderr.strip()[:300]}")
    return done.returncode == 0


def _output(command: list[str]) -> str:
    return _execute(command, None).stdout


def _execute(command: list[str], script: str | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            input=script,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} could not be run: {error}") from error
