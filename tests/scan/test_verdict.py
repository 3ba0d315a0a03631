"""The verdict adds up what its detectors say, says how sure it is, and never claims what no table covers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.planted import CLASSES, NAMES, pictures, planted, runtime
from tests.scan.tables import TABLE, clean_numbers, written
from unbackdoor.data import DefenderData, read_images
from unbackdoor.errors import InputError
from unbackdoor.models import Network, PreActResNet18, WRN16x1
from unbackdoor.scan import SCANNERS, Finding, NeuralCleanse, Scanner, Verdict, WeightStatistics, default_scanner
from unbackdoor.scan import verdict as module
from unbackdoor.scan.calibration import Table, compared
from unbackdoor.training import Runtime, new_network


@dataclass(frozen=True, kw_only=True)
class Says(Scanner):
    """Says of each class what it was told to, and counts what it was given."""

    how: Callable[[Network, DefenderData, Runtime], Finding]

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        return self.how(model, data, runtime)


def said(anomaly: Tensor, **more: object) -> Finding:
    plain = Finding(backdoored=None, suspected=(), calibrated=False, anomaly=anomaly, threshold=1.0)
    return replace(plain, **more)  # type: ignore[arg-type]


SAYS = replace(TABLE, clean={"Says": clean_numbers(39)})


def verdict(
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[Network, DefenderData, Runtime], Finding],
    table: Table = SAYS,
    rate: float | None = 0.05,
    clean: int = 60,
    **more: object,
) -> Finding:
    """Return the verdict of a single detector on a clean model, by a table that fits unless it is changed."""
    given = replace(table, detectors=(Says(how=how),))
    monkeypatch.setattr(module, "read_tables", lambda path: (given,))
    run = replace(runtime(), **more)  # type: ignore[arg-type]
    return Verdict(false_alarms=rate).scan(planted(1).twin, DefenderData(clean=pictures(clean, 5)), run)


def towards(target: int, value: float) -> Callable[[Network, DefenderData, Runtime], Finding]:
    return lambda model, data, runtime: said(value * torch.eye(CLASSES)[target])


def test_an_unusual_model_is_called_backdoored_and_its_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdict(monkeypatch, towards(3, 50.0))
    assert (found.backdoored, found.suspected, found.calibrated) == (True, (3,), True)
    assert found.evidence["p_value"] == pytest.approx(1 / 40)
    assert float(found.anomaly.max()) > found.threshold
    assert "class 3 stands out" in found.reason


def test_a_usual_model_is_not_and_the_power_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdict(monkeypatch, towards(3, 0.1))
    assert (found.backdoored, found.suspected, found.calibrated) == (False, (), True)
    assert found.evidence["p_value"] > 0.9
    assert "finds 58 of 62 backdoored ones" in found.reason
    assert "safe" not in found.reason


def test_the_rate_of_false_alarms_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one more clean model that is among the fifth of the most unusual, and not the most unusual one."""
    numbers = [clean_numbers(1, 100 + seed)[0] for seed in range(40)]
    p_values = [compared(SAYS.clean, {"Says": said(torch.zeros(CLASSES), numbers=one)}).p_value for one in numbers]
    chosen = next(one for one, p_value in zip(numbers, p_values) if 0.05 < p_value <= 0.2)
    few, many = (
        verdict(monkeypatch, lambda *_: said(torch.zeros(CLASSES), numbers=chosen), rate=rate) for rate in (0.05, 0.2)
    )
    assert (few.backdoored, many.backdoored) == (False, True)
    assert "of 62" in few.reason, "the power was measured at that rate"
    other = verdict(monkeypatch, towards(3, 0.1), rate=0.2)
    assert "of 62" not in other.reason, "and at no other"


def test_without_a_wish_the_rate_is_that_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(SAYS, clean={"Says": clean_numbers(9)}, rate=0.1)
    found = verdict(monkeypatch, towards(3, 50.0), few, rate=None)
    assert (found.backdoored, found.evidence["false_alarms"]) == (True, 0.1)
    with pytest.raises(InputError, match=r"9 clean models, which allow a share of false alarms of 0\.1 or more"):
        verdict(monkeypatch, towards(3, 5.0), few, rate=0.05)


def test_outside_of_its_table_it_is_inconclusive_and_names_what_stands_out_as_a_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = verdict(monkeypatch, towards(3, 0.1), replace(SAYS, architecture="other"))
    assert (silent.backdoored, silent.calibrated) == (None, False)
    alarm = verdict(monkeypatch, towards(3, 50.0), replace(SAYS, architecture="other"))
    assert (alarm.backdoored, alarm.suspected, alarm.calibrated) == (None, (3,), False)
    for found in (silent, alarm):
        assert found.evidence["calibration"]["misfits"] == ["the network planted"]
        assert "not calibrated for this scan, which has the network planted" in found.reason


@pytest.mark.parametrize(
    "table",
    [
        replace(SAYS, class_names=NAMES[::-1]),
        replace(SAYS, class_names=NAMES[:-1], clean={"Says": clean_numbers(39)[:, :, 1:]}),
        replace(SAYS, image_shape=(3, 32, 32)),
    ],
)
def test_where_no_table_has_its_classes_and_images_nothing_is_compared(
    monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    silent, alarm = (verdict(monkeypatch, towards(3, value), table) for value in (0.5, 5.0))
    assert (silent.backdoored, silent.suspected, silent.calibrated) == (None, (), False)
    assert (alarm.backdoored, alarm.suspected, alarm.calibrated) == (None, (3,), False)
    assert "no class is suspected by more than half of the scanners" in silent.reason
    assert "1 of 1 scanners suspect class 3" in alarm.reason
    for found in (silent, alarm):
        assert "p_value" not in found.evidence
        assert "no clean models to compare with" in found.reason
        assert len(found.evidence["calibration"]["misfits"]) == 1


def test_a_table_with_other_rows_than_the_detector_gives_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = replace(SAYS, clean={"Says": clean_numbers(39).repeat(1, 2, 1)})
    with pytest.raises(InputError, match="Says gives 1 numbers of each class and the calibration table has 2"):
        verdict(monkeypatch, towards(3, 5.0), table)


def test_fewer_clean_images_than_the_table_has_are_no_calibrated_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdict(monkeypatch, towards(3, 0.1), clean=50)
    assert found.evidence["calibration"]["misfits"] == ["50 clean images instead of 60"]
    assert (found.backdoored, found.calibrated) == (None, False)


def test_detectors_get_as_many_clean_images_as_the_table_has(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def counts(model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        given.append(len(data.need_clean("test")))
        return said(torch.zeros(CLASSES))

    verdict(monkeypatch, counts, clean=200)
    assert given == [60]


def test_a_shortened_search_is_no_calibrated_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdict(monkeypatch, lambda *_: said(torch.zeros(CLASSES), shortened=True))
    assert (found.backdoored, found.calibrated, found.shortened) == (None, False, True)
    assert "the budget cut short" in found.reason


def test_too_few_clean_models_for_the_rate_are_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def works(*_: object) -> Finding:
        raise AssertionError("it began")

    with pytest.raises(InputError, match=r"18 clean models, which allow a share of false alarms of 0\.0526 or more"):
        verdict(monkeypatch, works, replace(SAYS, clean={"Says": clean_numbers(18)}))


def test_a_detector_that_refuses_is_told_of_and_the_others_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        raise InputError("no linear layer")

    with pytest.raises(InputError, match="none of the verdict's scanners can look at this model; no linear layer"):
        verdict(monkeypatch, refuses)
    clean = {"WeightStatistics": clean_numbers(39), "Says": clean_numbers(39)}
    table = replace(TABLE, detectors=(WeightStatistics(), Says(how=refuses)), clean=clean)
    monkeypatch.setattr(module, "read_tables", lambda path: (table,))
    found = Verdict().scan(planted(1).twin, DefenderData(clean=pictures(60, 5)), runtime())
    assert found.calibrated is False
    assert found.evidence["detectors"][1] == {
        "name": "Says",
        "weighed": True,
        "anomaly": None,
        "class": None,
        "backdoored": None,
        "reason": "no linear layer",
    }
    assert found.evidence["calibration"]["misfits"] == ["no word from Says"]


def test_each_detector_has_an_equal_share_of_what_is_left_of_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = []

    def notes(model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        budgets.append(runtime.budget)
        return said(torch.zeros(CLASSES))

    @dataclass(frozen=True, kw_only=True)
    class Second(Says):
        pass

    clock = iter([0.0, 15.0, 15.0, 20.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    clean = {"Says": clean_numbers(39), "Second": clean_numbers(39)}
    table = replace(SAYS, detectors=(Says(how=notes), Second(how=notes)), clean=clean)
    monkeypatch.setattr(module, "read_tables", lambda path: (table,))
    found = Verdict().scan(planted(1).twin, DefenderData(clean=pictures(60, 5)), replace(runtime(), budget=1.0))
    assert budgets == pytest.approx([0.5, 0.75])
    assert found.seconds == {"Says": 15.0, "Second": 5.0}
    assert "seconds" not in found.to_json()


def test_any_registered_scanner_can_be_a_detector() -> None:
    assert "Verdict" in SCANNERS
    assert all(isinstance(detector, tuple(SCANNERS.values())) for detector in module.DETECTORS)


def test_triggers_of_a_detector_that_reconstructs_are_the_verdicts(tmp_path: Path) -> None:
    models = planted(1)
    detectors = (module.NeuralCleanse(rounds=2, steps=2, batch_size=8),)
    clean = {"NeuralCleanse": clean_numbers(39)}
    path = written(tmp_path / "t.json", replace(TABLE, detectors=detectors, clean=clean))
    found = Verdict(table=path).scan(models.twin, models.data, runtime())
    assert [one.target for one in found.reconstructions] == list(range(CLASSES))


@pytest.mark.parametrize(("value", "runs"), [(50.0, True), (0.1, False)])
def test_a_suspected_class_has_a_trigger_though_the_table_has_no_neural_cleanse(
    monkeypatch: pytest.MonkeyPatch, value: float, runs: bool
) -> None:
    quick = (module.NeuralCleanse(rounds=2, steps=2, batch_size=8),)
    monkeypatch.setattr(module, "FOR_TRIGGERS", quick)
    found = verdict(monkeypatch, towards(3, value))
    assert [one.target for one in found.reconstructions] == (list(range(CLASSES)) if runs else [])
    assert [(one["name"], one["weighed"]) for one in found.evidence["detectors"]] == [
        ("Says", True),
        *([("NeuralCleanse", False)] if runs else []),
    ]
    assert set(found.seconds) == {"Says", *(["NeuralCleanse"] if runs else [])}
    # It is not weighed: the answer is that of the table's detectors.
    assert (found.backdoored, found.calibrated) == (runs, True)


def test_planted_backdoors_are_told_from_their_twins_by_what_all_detectors_say(tmp_path: Path) -> None:
    """The twins are the clean models, among which a backdoored one is the most unusual."""
    heard = [
        {type(one).__name__: one.scan(planted(seed).twin, planted(seed).data, runtime(seed)) for one in TABLE.detectors}
        for seed in (1, 2, 4, 8)
    ]
    clean = {name: torch.stack([of[name].numbers for of in heard]) for name in TABLE.clean}
    path = written(tmp_path / "t.json", replace(TABLE, clean=clean))
    found = [
        Verdict(table=path, false_alarms=0.2).scan(planted(seed).suspect, planted(seed).data, runtime(seed))
        for seed in (1, 2)
    ]
    assert [one.backdoored for one in found] == [True, True]
    assert [one.suspected[0] for one in found] == [planted(1).target, planted(2).target]


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="above 0 and below 1"):
        Verdict(false_alarms=rate)


def test_who_names_no_scanner_gets_the_verdict_only_where_a_table_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_tables", lambda path: (SAYS,))
    model, few, many = planted(1).twin, DefenderData(clean=pictures(20, 5)), DefenderData(clean=pictures(60, 5))
    assert default_scanner(model, many, runtime()) == Verdict()
    assert default_scanner(model, few, runtime()) == NeuralCleanse()
    assert default_scanner(model, DefenderData(), runtime()) == NeuralCleanse()
    other = "bf16" if SAYS.precision == "fp32" else "fp32"
    assert default_scanner(model, many, replace(runtime(), precision=other)) == NeuralCleanse()
    monkeypatch.setattr(module, "read_tables", lambda path: (replace(SAYS, class_names=(*NAMES, "i")),))
    assert default_scanner(model, many, runtime()) == NeuralCleanse()


@pytest.mark.parametrize(
    ("network", "right"),
    [
        (partial(PreActResNet18, width=8), Verdict()),
        (partial(WRN16x1, width=16), Verdict()),
        (partial(PreActResNet18, width=64), NeuralCleanse()),
    ],
)
def test_the_tables_that_are_shipped_fit_the_networks_that_they_are_of(network: partial[Any], right: Scanner) -> None:
    images = read_images("digits", "train").subset(torch.arange(60))
    model = new_network(network, images, runtime())
    assert default_scanner(model, DefenderData(clean=images), replace(runtime(), precision="bf16")) == right
