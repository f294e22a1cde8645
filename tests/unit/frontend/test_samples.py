from __future__ import annotations

from datetime import UTC, datetime, timedelta

from frontend.samples import Sample, thin

START = datetime(2026, 1, 1, tzinfo=UTC)


def samples(count: int) -> list[Sample]:
    return [(START + timedelta(seconds=n), float(n % 7), n, n) for n in range(count)]


def test_few_samples_stay_as_they_are() -> None:
    assert thin(samples(10), 10) == samples(10)


def test_many_become_as_many_as_a_chart_can_show_in_order() -> None:
    thinned = thin(samples(1000), 50)
    assert len(thinned) == 50
    assert thinned == sorted(thinned)


def test_a_short_peak_survives() -> None:
    raw = samples(1000)
    raw[517] = (raw[517][0], 99.0, 1, 1)
    assert raw[517] in thin(raw, 20)
