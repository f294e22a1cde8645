from __future__ import annotations

import pytest

from frontend.templatetags.frontend import mebibytes, size, span


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "—"),
        (-3, "0 s"),
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3600, "1 h"),
        (3725, "1 h 2 min"),
        (93784, "1 d 2 h"),
    ],
)
def test_lengths_of_time_take_two_units(seconds: float | None, words: str) -> None:
    assert span(seconds) == words


@pytest.mark.parametrize(
    ("bytes_", "words"),
    [(None, "—"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (20 * 2**20, "20 MB")],
)
def test_sizes_read_well(bytes_: int | None, words: str) -> None:
    assert size(bytes_) == words


@pytest.mark.parametrize(("mib", "words"), [(512, "512 MB"), (1024, "1 GB"), (1536, "1.5 GB")])
def test_memory_reads_well(mib: int, words: str) -> None:
    assert mebibytes(mib) == words
