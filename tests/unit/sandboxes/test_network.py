import pytest

from config.errors import AppError, InvalidArgument, PermissionDenied
from sandboxes.network import EgressInput, NetworkInput, checked_egress, checked_network


def network(**fields):
    return checked_network(NetworkInput.model_validate(fields))


def test_nothing_said_is_nothing_stored():
    assert checked_network(None) is None
    assert network() is None


def test_what_was_given_is_kept_as_it_was_given():
    given = {
        "allowOut": ["1.1.1.1", "2606:4700::/32"],
        "denyOut": ["0.0.0.0/0", "8.8.8.0/24"],
        "allowPublicTraffic": False,
        "maskRequestHost": "localhost:${PORT}",
    }
    assert network(**given) == given


@pytest.mark.parametrize("entry", ["", "nope", "1.2.3.4/33", "example.com", "*", "::/0", "0.0.0.0"])
def test_deny_takes_addresses_and_blocks_only(entry):
    with pytest.raises(InvalidArgument, match="invalid denied CIDR"):
        network(denyOut=[entry])


@pytest.mark.parametrize("entry", ["", "1.2.3.4/33", "1.2.3", "http://x.de/", "a b", "x" * 300])
def test_allow_refuses_what_is_neither_address_nor_domain(entry):
    with pytest.raises(InvalidArgument, match="invalid allowed address"):
        network(allowOut=[entry])


def test_an_allowed_domain_wants_everything_else_denied():
    with pytest.raises(InvalidArgument, match="you must include 'ALL_TRAFFIC' in deny out"):
        network(allowOut=["example.com"])


def test_domains_are_refused_until_they_can_be_enforced():
    with pytest.raises(InvalidArgument, match="not supported by this server yet"):
        network(allowOut=["*.example.com"], denyOut=["0.0.0.0/0"])


@pytest.mark.parametrize("mask", ["", "ho st", "a:b:c", "host:99999", "host:0", "host:x", "a/b"])
def test_a_malformed_host_mask_is_refused(mask):
    with pytest.raises(InvalidArgument, match="mask request host is not valid"):
        network(maskRequestHost=mask)


def test_a_host_mask_beyond_ascii_is_refused_by_name():
    with pytest.raises(InvalidArgument, match="is not ASCII"):
        network(maskRequestHost="bücher.example")


@pytest.mark.parametrize("mask", ["localhost", "localhost:${PORT}", "a.b.c:8080", "${PORT}.x.y"])
def test_a_host_mask_may_name_the_port(mask):
    assert network(maskRequestHost=mask) == {"maskRequestHost": mask}


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"rules": {"a.b": []}}, InvalidArgument, "transform rules are not available"),
        ({"egressProxy": {"address": "x:1"}}, PermissionDenied, "Egress proxy"),
        ({"httpsPorts": [443]}, InvalidArgument, "not supported"),
        ({"dnsServers": ["::1"]}, InvalidArgument, "invalid DNS server"),
    ],
)
def test_what_this_server_lacks_is_refused(fields, error, text):
    with pytest.raises(error, match=text):
        network(**fields)


def test_an_empty_update_lifts_every_restriction():
    assert checked_egress(EgressInput(), proxy_name="egressProxy") == {}


def test_refusals_are_ours():
    assert issubclass(InvalidArgument, AppError)
