from __future__ import annotations

import dataclasses
import math

import pytest

from unbackdoor.errors import InputError
from unbackdoor.report import Fact, Interval, Report


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(94.2, 93.1, 95.2), (0.5, 0.6, 0.7), (0.5, 0.3, 0.4), (-0.1, -0.2, 0.1), (math.nan, 0.0, 1.0)],
)
def test_an_interval_out_of_order_or_in_percent_is_refused(value: float, low: float, high: float) -> None:
    with pytest.raises(InputError, match="fractions"):
        Interval(value=value, low=low, high=high)


def test_an_interval_forgives_the_rounding_of_floats() -> None:
    assert Interval(value=0.3, low=0.1 + 0.2, high=1 + 1e-12).value == 0.3


def test_only_the_title_of_a_report_is_required_and_nothing_can_be_changed() -> None:
    report = Report(title="t")
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.title = "u"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Fact("positional", "arguments")  # type: ignore[misc]
