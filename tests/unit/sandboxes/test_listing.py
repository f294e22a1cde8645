import base64
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.drf import decode_cursor, encode_cursor
from config.errors import InvalidArgument
from sandboxes.api.listing import metadata_filter

# A machine that is busy with other work is not a fault.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NOON = datetime(2026, 1, 2, 12, 0, 0, 123456, tzinfo=UTC)
text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"))


@UNHURRIED
@given(st.dictionaries(text, text, min_size=1, max_size=4))
def test_metadata_survives_the_clients_double_encoding(pairs):
    quoted = {quote(key, safe=""): quote(value, safe="") for key, value in pairs.items()}
    assert metadata_filter(urlencode(quoted)) == pairs


@pytest.mark.parametrize("raw", ["novalue", "a=%zz", "a=%", "a=%2541%", "a=1&b", "a=%2500"])
def test_malformed_metadata_is_refused(raw):
    with pytest.raises(InvalidArgument, match="Error parsing metadata"):
        metadata_filter(raw)


@pytest.mark.parametrize("ascending", [True, False])
def test_a_cursor_comes_back_as_it_was_made(ascending):
    token = encode_cursor(NOON, "iabc", ascending=ascending)
    assert decode_cursor(token, ascending=ascending) == (NOON, "iabc")
    assert token.isascii()
    assert "=" not in token


WITH_NUL = encode_cursor(NOON, "i\x00")
TOO_EARLY = base64.urlsafe_b64encode(b"0001-01-01T00:00:00+23:59__i").decode()


@pytest.mark.parametrize(
    "token", ["", "x", "////", "ü", "bm90X2E", "YQ__", "9" * 5000, WITH_NUL, TOO_EARLY]
)
def test_a_token_that_is_no_cursor_is_refused(token):
    with pytest.raises(InvalidArgument, match="Invalid next token"):
        decode_cursor(token)


def test_a_cursor_of_the_other_order_is_refused():
    token = encode_cursor(NOON, "iabc", ascending=True)
    with pytest.raises(InvalidArgument, match="Invalid next token"):
        decode_cursor(token)


@UNHURRIED
@given(st.text(max_size=200))
def test_no_token_breaks_the_decoder(token):
    for ascending in (True, False):
        try:
            decode_cursor(token, ascending=ascending)
        except InvalidArgument:
            continue
