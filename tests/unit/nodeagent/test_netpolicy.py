import pytest

from nodeagent import netpolicy
from nodeagent.errors import InvalidArgument
from nodeagent.settings import EgressException
from nodeagent.wire import NetworkConfig


def test_a_sandbox_without_rules_needs_no_chain():
    assert netpolicy.is_default(NetworkConfig())
    assert netpolicy.is_default(NetworkConfig(allow_internet_access=True))
    # Allowing opens nothing that was not open: without a deny list there is nothing to beat.
    assert netpolicy.is_default(NetworkConfig(allow_out=["1.1.1.1"]))
    assert not netpolicy.is_default(NetworkConfig(allow_internet_access=False))
    assert not netpolicy.is_default(NetworkConfig(deny_out=["1.1.1.1"]))


def test_no_internet_access_denies_everything():
    assert netpolicy.denied_ranges(NetworkConfig(allow_internet_access=False)) == ["0.0.0.0/0"]


def test_ranges_are_canonical_and_named_once():
    network = NetworkConfig(deny_out=["8.8.8.8", "8.8.8.8/32", "9.9.9.9/8", "2001:db8::/32"])
    assert netpolicy.denied_ranges(network) == ["8.8.8.8/32", "9.0.0.0/8"]


@pytest.mark.parametrize("entry", ["", "nonsense", "1.2.3.4/33", "300.1.1.1", "1.2.3.4 -j ACCEPT"])
def test_a_bad_denied_range_is_refused_by_name(entry):
    with pytest.raises(InvalidArgument, match="invalid denied CIDR"):
        netpolicy.validate_network(NetworkConfig(deny_out=[entry]))


@pytest.mark.parametrize("entry", ["example.com", "*.example.com", "*", "1.2.3.4\n-A INPUT"])
def test_an_allowed_entry_that_is_no_address_is_refused(entry):
    with pytest.raises(InvalidArgument, match="invalid allowed address"):
        netpolicy.validate_network(NetworkConfig(allow_out=[entry]))


def test_allowed_ranges_come_before_denied_ones():
    network = NetworkConfig(allow_out=["1.1.1.1"], deny_out=["0.0.0.0/0"])
    lines = netpolicy.sandbox_rules("SLX", "abcdef0123456789", "172.18.0.2", network)
    allowed = next(i for i, line in enumerate(lines) if "1.1.1.1/32" in line)
    denied = next(i for i, line in enumerate(lines) if "0.0.0.0/0" in line)
    assert allowed < denied
    # An allowed range still passes through the base rules, which refuse private ones.
    assert lines[allowed].endswith("-g SLX-B")


def test_the_base_lets_only_resolvers_and_named_exceptions_into_private_ranges():
    lines = netpolicy.base_rules(
        "SLX",
        resolvers=["10.1.1.53"],
        exceptions=[EgressException(cidr="192.168.7.1/32", port=443)],
        blocks_smtp=True,
    )
    base = [line for line in lines if line.startswith("-A SLX-B")]
    first_refusal = next(i for i, line in enumerate(base) if "REJECT" in line)
    doors = base[:first_refusal]
    assert doors == [
        "-A SLX-B -d 192.168.7.1/32 -p tcp --dport 443 -j RETURN",
        "-A SLX-B -d 10.1.1.53 -p udp --dport 53 -j RETURN",
        "-A SLX-B -d 10.1.1.53 -p tcp --dport 53 -j RETURN",
    ]
    for refused in ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12"):
        assert any(f"-d {refused} -j REJECT" in line for line in base)


def test_chain_names_fit_the_kernels_limit():
    prefix = netpolicy.chain_prefix("n" * 40)
    assert len(netpolicy.sandbox_chain(prefix, "0" * 64)) <= 28


def test_too_many_rules_are_refused():
    with pytest.raises(InvalidArgument, match="at most"):
        netpolicy.validate_network(NetworkConfig(deny_out=[f"1.1.{i % 250}.1" for i in range(300)]))
