from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbackdoor.report.content import Interval, Metric
from unbackdoor.report.text import change, percent, shorten, shown, width


def short(path: object) -> str:
    from unbackdoor.report import short_path

    return short_path(path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PurePosixPath("/home/anna/models/victim.safetensors"), "models/victim.safetensors"),
        (PureWindowsPath(r"C:\Users\anna\models\victim.safetensors"), "models/victim.safetensors"),
        ("/home/anna/my models/the victim.pt", "my models/the victim.pt"),
        ("victim.pt", "victim.pt"),
        ("/victim.pt", "victim.pt"),
        ("C:\\victim.pt", "victim.pt"),
        ("./runs/1/", "runs/1"),
        ("/", ""),
        ("/a/b\x1b[31m/c", "b/c"),
    ],
)
def test_short_path_keeps_the_last_two_components(path: object, expected: str) -> None:
    assert short(path) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scan /home/anna/models/a.pt --seed 0", "scan models/a.pt --seed 0"),
        ("--out=/home/anna/out/b.pt", "--out=out/b.pt"),
        ("scan '/home/anna/my models/a.pt' x", "scan 'my models/a.pt' x"),
        ('scan "/home/anna/my models/a.pt"', 'scan "my models/a.pt"'),
        ("see file:///home/anna/x/y.html", "see x/y.html"),
        (r"scan C:\Users\anna\m\a.pt", "scan m/a.pt"),
        (r"scan \\server\share\m\a.pt", "scan m/a.pt"),
        ("folder:/home/anna/data/train", "folder:data/train"),
        ("/ho\x00me/anna/x/a.pt", "x/a.pt"),
        (
            "and/or 1/2/3 https://a.example/b/c/d runs/1/2/a.pt",
            "and/or 1/2/3 https://a.example/b/c/d runs/1/2/a.pt",
        ),
        ("5 / 7 / 9", "5 / 7 / 9"),
        ("</text></svg>", "</text></svg>"),
    ],
)
def test_absolute_paths_inside_text_are_shortened_and_nothing_else(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_long_names_are_cut_by_their_width_on_the_page() -> None:
    assert shorten("automobile", 10) == "automobile"
    assert shorten("automobiles", 10) == "automobil…"
    assert shorten("猫猫猫猫猫猫", 10) == "猫猫猫猫…"
    assert shorten("\x1b[31mautomobile", 10) == "automobile"


@given(st.text(), st.integers(1, 30))
def test_shortened_names_fit(text: str, cells: int) -> None:
    assert width(shorten(text, cells)) <= cells


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


def test_figures_are_percent_with_one_decimal() -> None:
    assert " ".join(percent(interval(0.942, 0.931, 0.952))) == "94.2 % [93.1, 95.2]"
    assert percent(None) == ("not measured", "")


def test_a_proportion_of_no_trials_is_not_measured() -> None:
    class Nothing:
        value, low, high = float("nan"), 0.0, 1.0

    assert percent(Nothing()) == ("not measured", "")


@pytest.mark.parametrize(
    ("before", "after", "better", "expected"),
    [
        ((0.99, 0.98, 1.0), (0.05, 0.04, 0.06), "lower", ("−94.0 points", "better")),
        ((0.99, 0.98, 1.0), (0.05, 0.04, 0.06), "higher", ("−94.0 points", "worse")),
        ((0.5, 0.45, 0.55), (0.7, 0.65, 0.75), "higher", ("+20.0 points", "better")),
        ((0.5, 0.45, 0.55), (0.7, 0.65, 0.75), "lower", ("+20.0 points", "worse")),
        ((0.5, 0.45, 0.55), (0.54, 0.5, 0.58), "higher", ("+4.0 points", "intervals overlap")),
        ((0.5, 0.45, 0.55), (0.5, 0.45, 0.55), "higher", ("±0.0 points", "intervals overlap")),
    ],
)
def test_a_change_is_called_better_or_worse_only_where_the_intervals_are_apart(
    before: tuple[float, ...], after: tuple[float, ...], better: str, expected: tuple[str, str]
) -> None:
    metric = Metric(name="m", before=interval(*before), after=interval(*after), better=better)  # type: ignore[arg-type]
    assert change(metric) == expected


def test_a_figure_measured_once_has_no_change() -> None:
    assert change(Metric(name="m", before=interval(0.5, 0.4, 0.6), better="higher")) == ("", "")
    assert change(Metric(name="m", after=interval(0.5, 0.4, 0.6), better="higher")) == ("", "")
