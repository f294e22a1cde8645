import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.guest import tinyjson

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(values)
def test_it_writes_what_everybody_reads(value):
    assert json.loads(tinyjson.dumps(value)) == value


@settings(deadline=None)
@given(values)
def test_it_reads_what_everybody_writes(value):
    assert tinyjson.loads(json.dumps(value, separators=(",", ":")).encode()) == value


@pytest.mark.parametrize("text", [b"", b"{", b"nonsense", b"1 2", b'{"a"}'])
def test_anything_else_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011
        tinyjson.loads(text)


def test_bytes_that_are_no_unicode_become_replacement_characters():
    assert json.loads(tinyjson.dumps({"name": "a\udcff"})) == {"name": "a\ufffd"}
