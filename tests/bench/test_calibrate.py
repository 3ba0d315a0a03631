"""Weights are those that minimise the loss, useless numbers get none, and held-out models are counted right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from tests.planted import planted, runtime
from tests.scan.tables import finding
from unbackdoor.bench import calibrate as module
from unbackdoor.bench.calibrate import (
    PENALTY,
    Judged,
    Scanned,
    judged,
    logistic,
    measures_of,
    scan_zoo,
    score,
    table_of,
)
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import save_model
from unbackdoor.scan import WeightStatistics
from unbackdoor.scan.calibration import HeldOut, Measure

CLASSES = 6


def test_weights_are_at_the_minimum_of_the_loss_within_their_bounds() -> None:
    draws = np.random.default_rng(0)
    positive = np.arange(40) % 4 == 0
    rows = draws.normal(size=(40, 3)) + np.outer(positive, [2.0, 0.0, -2.0])
    weights = logistic(rows, positive)
    assert weights[0] > 0.3
    assert weights[2] == 0, "the third number falls in backdoored models, which no weight of 0 or more can use"

    def loss(at: np.ndarray, constant: float) -> float:
        z = rows @ at + constant
        fit = np.log1p(np.exp(-z[positive])).mean() + np.log1p(np.exp(z[~positive])).mean()
        return float(fit + PENALTY * (at**2).sum())

    def best(at: np.ndarray) -> float:
        return min(loss(at, constant) for constant in np.linspace(-8, 8, 1601))

    least = best(weights)
    for place in range(3):
        for step in (-0.05, 0.05):
            moved = weights.copy()
            moved[place] += step
            if moved[place] >= 0:
                assert best(moved) > least - 1e-6


def zoo(clean: int = 40, backdoored: int = 20, seed: int = 0) -> list[Scanned]:
    """Return made-up models: of backdoored ones the detector "Sees" tells the target, and "Blind" tells nothing."""
    draws = torch.Generator().manual_seed(seed)
    models = []
    for number in range(clean + backdoored):
        target = None if number < clean else number % CLASSES
        seen = torch.randn(CLASSES, generator=draws)
        if target is not None:
            seen[target] += 6.0
        part = "held-out" if number % 2 else "weights" if target is not None or number % 6 == 0 else "ranks"
        blind = torch.randn(CLASSES, generator=draws)
        whole = float(torch.randn((), generator=draws))
        said = {"Sees": finding(seen.tolist()), "Blind": finding(blind.tolist(), statistics={"whole": whole})}
        models.append(
            Scanned(
                key=str(number),
                part=part,
                attack=None if target is None else "SIG" if number % 3 else "LF",
                backdoored=target is not None,
                target=target,
                findings=said,
                seconds=1.0,
            )
        )
    return models


def test_a_number_that_tells_nothing_weighs_little_beside_one_that_tells_all() -> None:
    measures = {(measure.detector, measure.number): measure for measure in measures_of(zoo())}
    assert set(measures) == {("Sees", "anomaly"), ("Blind", "anomaly"), ("Blind", "whole")}
    sees = measures["Sees", "anomaly"]
    assert all(sees.weight > 3 * one.weight for one in measures.values() if one is not sees)


def test_centre_and_scale_are_the_median_and_the_deviation_of_the_clean_models_that_teach() -> None:
    models = zoo()
    (sees,) = (measure for measure in measures_of(models) if measure.detector == "Sees")
    largest = [
        float(one.findings["Sees"].anomaly.max()) for one in models if one.part == "weights" and not one.backdoored
    ]
    assert sees.center == pytest.approx(np.median(largest))
    assert sees.scale == pytest.approx(1.4826 * np.median(np.abs(np.array(largest) - np.median(largest))))


def test_models_that_judge_or_rank_have_no_part_in_the_weights() -> None:
    models = zoo()
    changed = [
        one if one.part == "weights" else replace(one, findings={"Sees": finding([99.0] * CLASSES)}) for one in models
    ]
    assert measures_of(changed) == measures_of(models)


def test_too_few_models_to_learn_from_are_refused() -> None:
    with pytest.raises(InputError, match="make a larger zoo"):
        measures_of(zoo(clean=6))
    with pytest.raises(InputError, match="judged by held-out models of both kinds"):
        judged("one", measures_of(zoo()), [one for one in zoo() if one.part != "held-out" or one.backdoored], 0.05)


def test_held_out_models_are_counted_as_by_hand() -> None:
    models = zoo()
    measure = Measure(detector="Sees", number="anomaly", center=0.0, scale=1.0, weight=1.0)
    found = judged("Sees", [measure], models, 0.2)
    ranks = sorted((score([measure], one) for one in models if one.part == "ranks"), reverse=True)
    threshold = ranks[math.floor(0.2 * (len(ranks) + 1)) - 1]
    held = [one for one in models if one.part == "held-out"]
    alarms = [score([measure], one) > threshold for one in held]
    accused = [one for one, alarm in zip(held, alarms) if alarm and one.target is not None]
    right = [int(one.findings["Sees"].anomaly.argmax()) == one.target for one in accused]
    assert found.held_out.alarms == sum(alarm for one, alarm in zip(held, alarms) if not one.backdoored)
    assert found.held_out.found == sum(alarm for one, alarm in zip(held, alarms) if one.backdoored) == 10
    assert found.held_out.right_target == sum(right)
    assert sum(pair[1] for pair in found.by_attack.values()) == found.held_out.backdoored == 10
    pairs = [
        (score([measure], bad), score([measure], good))
        for bad in held
        if bad.backdoored
        for good in held
        if not good.backdoored
    ]
    assert found.auroc == pytest.approx(np.mean([bad > good for bad, good in pairs]))


@pytest.mark.parametrize(("count", "of"), [(0, 60), (2, 60), (60, 60), (7, 8)])
def test_bounds_are_those_of_clopper_and_pearson(count: int, of: int) -> None:
    held = HeldOut(clean=of, alarms=count, backdoored=of, found=count, single_target=0, right_target=0)
    found = Judged(name="one", auroc=0.5, held_out=held, by_attack={})
    one_sided = binomtest(count, of, alternative="less").proportion_ci(0.95)
    assert found.highest_false == pytest.approx(one_sided.high, abs=1e-4)
    assert found.lowest_true == pytest.approx(
        binomtest(count, of, alternative="greater").proportion_ci(0.95).low, abs=1e-4
    )


def test_the_table_has_the_scores_of_the_models_that_rank_and_how_it_did() -> None:
    models, description = zoo(), planted(1).twin.description
    table, ways = table_of("made up", [description], 60, (WeightStatistics(),), models, 0.2)
    assert list(table.clean_scores) == sorted(score(table.measures, one) for one in models if one.part == "ranks")
    assert [way.name for way in ways] == ["Verdict", "Blind: anomaly", "Blind: whole", "Sees: anomaly"]
    assert table.held_out == ways[0].held_out
    assert table.held_out.found == 10
    assert ways[0].auroc > 0.95
    assert ways[1].auroc < 0.8


def rows(folder: Path, attacks: Sequence[str | None] = (None, "BadNets")) -> list[dict[str, object]]:
    models = planted(1)
    made: list[dict[str, object]] = []
    for number, attack in enumerate(attacks):
        network = models.twin if attack is None else models.suspect
        file = f"{number}.safetensors"
        # A registered name, so that the file can be read again.
        digest = save_model(folder / file, network, provenance={})
        target = None if attack is None else models.target
        made.append(
            {"key": str(number), "file": file, "sha256": digest, "part": "weights", "attack": attack, "seed": number}
            | {"backdoored": attack is not None, "target": target}
        )
    return made


def test_a_zoo_is_scanned_once_and_a_detector_that_refuses_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = planted(1)
    clean: ImageSet = models.data.need_clean("test")
    found = [models.twin, models.suspect]
    monkeypatch.setattr(
        module, "load_model", lambda path: _Loaded(found[int(path.stem)], made[int(path.stem)]["sha256"])
    )
    made = rows(tmp_path)
    failed: dict[str, object] = {**made[0], "key": "failed", "backdoored": None}
    looked = scan_zoo(tmp_path, [*made, failed], clean, [WeightStatistics()], 40, runtime())
    scanned = [Scanned.of(row, scans) for row, scans in looked]
    assert [one.key for one in scanned] == ["0", "1"]
    assert scanned[1].target == models.target
    assert len(scanned[0].findings["WeightStatistics"].anomaly) == clean.classes
    assert set(scanned[0].findings["WeightStatistics"].statistics) == {"channel"}

    def again(path: Path) -> None:
        raise AssertionError("it was scanned already")

    monkeypatch.setattr(module, "load_model", again)
    assert scan_zoo(tmp_path, made, clean, [WeightStatistics()], 40, runtime()) == looked
    with pytest.raises(AssertionError, match="already"):
        scan_zoo(tmp_path, made, clean, [WeightStatistics()], 41, runtime())


class _Loaded:
    def __init__(self, network: object, sha256: object) -> None:
        self.network, self.sha256 = network, sha256
