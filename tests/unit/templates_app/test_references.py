import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.errors import InvalidArgument
from templates_app.references import normalized_tags, parse_reference

# A machine that is busy with other work is not a fault.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("raw", "namespace", "name", "tag"),
    [
        ("base", None, "base", None),
        (" Base ", None, "base", None),
        ("base:default", None, "base", None),
        ("base:v1.2_a-b", None, "base", "v1.2_a-b"),
        ("team/name", "team", "name", None),
        ("team/name:V1", "team", "name", "v1"),
        ("a_b-c", None, "a_b-c", None),
    ],
)
def test_references_are_read(raw, namespace, name, tag):
    reference = parse_reference(raw)
    assert (reference.namespace, reference.name, reference.tag) == (namespace, name, tag)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("", "invalid template ID"),
        ("a b", "invalid template ID"),
        ("a.b", "invalid template ID"),
        ("ü", "invalid template ID"),
        ("team/", "invalid template ID"),
        ("/name", "invalid namespace"),
        ("a/b/c", "invalid namespace"),
        ("te am/name", "invalid namespace"),
        ("name:", "invalid tag"),
        ("name:a:b", "invalid tag"),
        ("name:a b", "invalid tag"),
        ("name:a/b", "invalid"),
        ("a\n", None),
    ],
)
def test_malformed_references_name_the_part(raw, message):
    if message is None:
        assert parse_reference(raw).name == "a"
        return
    with pytest.raises(InvalidArgument, match=message):
        parse_reference(raw)


@UNHURRIED
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(raw):
    try:
        reference = parse_reference(raw)
    except InvalidArgument:
        return
    assert parse_reference(str(reference)) == reference


def test_tags_are_normalised_once_each_in_order():
    assert normalized_tags(["B", "a", "b"]) == ["b", "a"]


@pytest.mark.parametrize("tag", ["", ":v1", "a:", "a/b", "12345678-1234-1234-1234-123456789abc"])
def test_bad_tags_are_refused(tag):
    with pytest.raises(InvalidArgument, match="Invalid tag"):
        normalized_tags([tag])
