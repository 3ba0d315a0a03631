"""What is usual is that of clean models alone, and held-out models are counted right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from tests.planted import planted, runtime
from tests.scan.tables import finding
from unbackdoor.bench import zoo_scans as module
from unbackdoor.bench.calibrate import check_plan, measures_of, tables_of, told_of
from unbackdoor.bench.judge import Judged, judged, judged_alone, rate_of, score
from unbackdoor.bench.zoo import plan
from unbackdoor.bench.zoo_scans import Scanned, scan_zoo
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import PreActResNet18, WRN16x1, save_model
from unbackdoor.scan import WeightStatistics
from unbackdoor.scan.calibration import HeldOut, Measure, Table, of_classes

CLASSES = 6
PREACT, WRN = partial(PreActResNet18, width=8), partial(WRN16x1, width=16)


def zoo(
    clean: int = 40, backdoored: int = 20, seed: int = 0, networks: Sequence[str] = ("PreActResNet18",)
) -> list[Scanned]:
    """Return made-up models: of backdoored ones the detector "Sees" tells the target, and "Blind" tells nothing.

    All numbers of the second network are larger by far.
    """
    draws = torch.Generator().manual_seed(seed)
    models = []
    for number in range(clean + backdoored):
        target = None if number < clean else number % CLASSES
        place = number // 2 % len(networks)
        seen = torch.randn(CLASSES, generator=draws) + 50.0 * place
        if target is not None:
            seen[target] += 60.0
        part = "held-out" if number % 2 else "usual" if target is not None or number % 6 == 0 else "ranks"
        blind = torch.randn(CLASSES, generator=draws) + 50.0 * place
        whole = float(torch.randn((), generator=draws)) + 50.0 * place
        said = {"Sees": finding(seen.tolist()), "Blind": finding(blind.tolist(), statistics={"whole": whole})}
        models.append(
            Scanned(
                key=str(number),
                network=networks[place],
                part=part,  # type: ignore[arg-type]
                attack=None if target is None else "SIG" if number % 3 else "LF",
                backdoored=target is not None,
                target=target,
                findings=said,
                seconds=1.0,
            )
        )
    return models


def test_all_numbers_count_the_same() -> None:
    measures = measures_of(zoo())["PreActResNet18"]
    pairs = [("Blind", "anomaly"), ("Blind", "whole"), ("Sees", "anomaly")]
    assert [(one.detector, one.number) for one in measures] == pairs
    assert {one.weight for one in measures} == {1.0}


def test_centre_and_scale_are_the_median_and_the_deviation_of_the_clean_models_that_teach() -> None:
    models = zoo()
    (sees,) = (measure for measure in measures_of(models)["PreActResNet18"] if measure.detector == "Sees")
    largest = [
        float(one.findings["Sees"].anomaly.max()) for one in models if one.part == "usual" and not one.backdoored
    ]
    assert sees.center == pytest.approx(np.median(largest))
    assert sees.scale == pytest.approx(1.4826 * np.median(np.abs(np.array(largest) - np.median(largest))))


def test_models_that_judge_or_rank_and_backdoored_ones_do_not_say_what_is_usual() -> None:
    models = zoo()
    changed = [
        one
        if one.part == "usual" and not one.backdoored
        else replace(one, findings={"Sees": finding([99.0] * CLASSES)})
        for one in models
    ]
    assert measures_of(changed) == measures_of(models)


def test_too_few_models_to_learn_from_are_refused() -> None:
    with pytest.raises(InputError, match="make a larger zoo"):
        measures_of(zoo(clean=6))
    with pytest.raises(InputError, match="judged by held-out models of both kinds"):
        judged("one", measures_of(zoo()), [one for one in zoo() if one.part != "held-out" or one.backdoored], 0.05)


def test_held_out_models_are_counted_as_by_hand() -> None:
    models = zoo()
    measures = {"PreActResNet18": [Measure(detector="Sees", number="anomaly", center=0.0, scale=1.0, weight=1.0)]}
    found = judged("Sees", measures, models, 0.2)
    ranks = sorted((score(measures, one) for one in models if one.part == "ranks"), reverse=True)
    threshold = ranks[math.floor(0.2 * (len(ranks) + 1)) - 1]
    held = [one for one in models if one.part == "held-out"]
    alarms = [score(measures, one) > threshold for one in held]
    accused = [one for one, alarm in zip(held, alarms) if alarm and one.target is not None]
    right = [int(one.findings["Sees"].anomaly.argmax()) == one.target for one in accused]
    assert found.held_out.alarms == sum(alarm for one, alarm in zip(held, alarms) if not one.backdoored)
    assert found.held_out.found == sum(alarm for one, alarm in zip(held, alarms) if one.backdoored) == 10
    assert found.held_out.right_target == sum(right)
    assert sum(pair[1] for pair in found.by_attack.values()) == found.held_out.backdoored == 10
    pairs = [
        (score(measures, bad), score(measures, good))
        for bad in held
        if bad.backdoored
        for good in held
        if not good.backdoored
    ]
    assert found.auroc == pytest.approx(np.mean([bad > good for bad, good in pairs]))


def test_a_number_of_the_whole_model_suspects_the_class_that_its_detector_names() -> None:
    """It is the same for every class, of which the first is no answer."""

    def certain(one: Scanned) -> Scanned:
        sees = replace(one.findings["Sees"], statistics={"lead": 90.0 if one.backdoored else 0.0})
        return replace(one, findings={"Sees": sees})

    measures = {"PreActResNet18": [Measure(detector="Sees", number="lead", center=0.0, scale=1.0, weight=1.0)]}
    models = [certain(one) for one in zoo()]
    found = judged("lead", measures, models, 0.2).held_out
    named = judged("Sees", {"PreActResNet18": [replace(measures["PreActResNet18"][0], number="anomaly")]}, models, 0.2)
    assert found.found == found.single_target == 10
    assert found.right_target >= named.held_out.right_target > 5


def test_a_detector_is_judged_by_its_own_threshold_and_the_class_that_it_names() -> None:
    def decides(one: Scanned) -> Scanned:
        numbers = one.findings["Sees"].anomaly
        flagged = bool(numbers.max() > 3.5)
        suspected = (int(numbers.argmax()),) if flagged else ()
        return replace(one, findings={"Sees": replace(one.findings["Sees"], backdoored=flagged, suspected=suspected)})

    models = [decides(one) for one in zoo()]
    found = judged_alone("Sees", models)
    held = [one for one in models if one.part == "held-out"]
    accused = [one for one in held if one.findings["Sees"].backdoored]
    assert found.name == "Sees, by its own threshold"
    assert found.held_out.alarms == sum(not one.backdoored for one in accused)
    assert found.held_out.found == sum(one.backdoored for one in accused) > 0
    right = sum(one.backdoored and one.findings["Sees"].suspected[0] == one.target for one in accused)
    assert found.held_out.right_target == right > 0


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
    models = zoo()
    (table,), ways = tables(models, PREACT)
    ranks = [one for one in models if one.part == "ranks"]
    measures = {"PreActResNet18": table.measures}
    assert list(table.clean_scores) == sorted(score(measures, one) for one in ranks)
    own = {"PreActResNet18": of_classes(table.measures)}
    assert list(table.clean_class_scores) == sorted(score(own, one) for one in ranks)
    assert (table.architecture, table.arguments, table.data) == ("PreActResNet18", {"width": 8}, "pictures")
    assert table.rate == pytest.approx(1 / (1 + len(ranks)))
    assert "PreActResNet18 width=8, made up" in table.name
    assert [way.name for way in ways] == ["Verdict", "Blind: anomaly", "Blind: whole", "Sees: anomaly"]
    assert table.held_out == ways[0].held_out
    assert table.held_out.found >= 9
    assert ways[0].auroc > 0.95
    assert ways[1].auroc < 0.8


def tables(models: list[Scanned], *networks: partial[Any]) -> tuple[list[Table], list[Judged]]:
    return tables_of("made up", "pictures", CLASSES, (3, 12, 12), networks, 60, "fp32", (WeightStatistics(),), models)


def test_what_is_usual_and_the_models_to_rank_among_are_those_of_the_own_network() -> None:
    models = zoo(clean=80, backdoored=40, networks=("PreActResNet18", "WRN16x1"))
    (first, second), (whole, *_) = tables(models, PREACT, WRN)
    assert (first.architecture, second.architecture) == ("PreActResNet18", "WRN16x1")
    for one, other in zip(first.measures, second.measures):
        assert other.center - one.center == pytest.approx(50, abs=2)
        assert one.weight == other.weight
    # Not a model of the second network is accused for its large numbers, and those of the first are found beside them.
    for table in (first, second):
        assert len(table.clean_scores) == 13
        assert table.held_out.backdoored == 10
        assert table.held_out.found >= 8
        assert table.held_out.alarms <= 3
        assert max(table.clean_scores) < 10
    assert whole.held_out.found >= 16
    assert whole.auroc > 0.95


def test_too_few_clean_models_of_a_network_to_rank_among_are_refused() -> None:
    models = zoo(clean=80, backdoored=40, networks=("PreActResNet18", "WRN16x1"))
    few = [one for one in models if one.part != "ranks" or one.network != "WRN16x1"]
    with pytest.raises(InputError, match="9 clean ones of its network or more, found 0; make a larger zoo"):
        tables(few, PREACT, WRN)
    with pytest.raises(InputError, match="found 0"):
        tables([replace(one, findings={}) for one in models], PREACT, WRN)


@pytest.mark.parametrize(
    ("attacks", "rounds", "networks", "words"),
    [
        (["BadNets", "SIG"], 8, ("PreActResNet18", "WRN16x1"), "9 clean ones of its network or more"),
        (["BadNets"], 40, ("WRN16x1",), "judged by held-out models of both kinds; .* with attacks that are held out"),
        (["BadNets", "CTRL", "FTrojan", "LF", "SIG"], 11, ("PreActResNet18", "WRN16x1"), "found 3; make a larger zoo"),
        (["BadNets", "SIG"], 60, ("PreActResNet18", "WRN16x1"), ""),
    ],
)
def test_a_zoo_too_small_for_tables_is_refused_before_it_is_made(
    attacks: list[str], rounds: int, networks: tuple[str, ...], words: str
) -> None:
    chosen = [{"PreActResNet18": PREACT, "WRN16x1": WRN}[name] for name in networks]
    entries = plan("digits", attacks, rounds, chosen)
    with pytest.raises(InputError, match=words) if words else nullcontext():
        check_plan(entries, networks)


def test_with_clean_models_enough_the_rate_is_five_percent() -> None:
    models = [one for one in zoo(clean=60) if one.part == "ranks"]
    assert len(models) == 20
    assert rate_of(models, ["PreActResNet18"]) == 0.05
    assert rate_of(models[:9], ["PreActResNet18"]) == 0.1


def test_the_part_is_that_of_the_name_and_the_seed_whatever_a_row_says() -> None:
    row = {"key": "k", "data": "digits", "network": "n", "attack": None, "backdoored": False, "target": None}
    for seed, part in ((0, "usual"), (2, "usual"), (8, "ranks"), (16, "usual"), (3, "held-out")):
        assert Scanned.of({**row, "seed": seed, "part": "ranks" if part == "usual" else "usual"}, []).part == part


def test_it_is_told_how_models_were_made_and_that_their_scans_saw_other_images() -> None:
    made: dict[str, Any] = {"size": 100, "recipe": {"epochs": 3}}
    assert told_of(made) == "100 training images, 3 epochs, scanned with images new to the model"


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
            {"key": str(number), "file": file, "sha256": digest, "data": "pictures", "network": "planted"}
            | {"attack": attack, "seed": 2 * number, "backdoored": attack is not None, "target": target}
        )
    return made


def test_a_zoo_is_scanned_once_and_a_detector_that_refuses_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = planted(1)
    clean: ImageSet = models.data.need_clean("test")
    found = [models.twin, models.suspect]
    monkeypatch.setattr(
        module, "load_model", lambda path, arch: _Loaded(found[int(path.stem)], made[int(path.stem)]["sha256"])
    )
    made = rows(tmp_path)
    failed: dict[str, object] = {**made[0], "key": "failed", "backdoored": None}
    looked = scan_zoo(tmp_path, [*made, failed], [PREACT], clean, [WeightStatistics()], 40, runtime())
    scanned = [Scanned.of(row, scans) for row, scans in looked]
    assert [one.key for one in scanned] == ["0", "1"]
    assert scanned[1].target == models.target
    assert len(scanned[0].findings["WeightStatistics"].anomaly) == clean.classes
    assert set(scanned[0].findings["WeightStatistics"].statistics) == {"channel"}

    def again(path: Path, arch: str | None) -> None:
        raise AssertionError("it was scanned already")

    monkeypatch.setattr(module, "load_model", again)
    assert scan_zoo(tmp_path, made, [PREACT], clean, [WeightStatistics()], 40, runtime()) == looked
    with pytest.raises(AssertionError, match="already"):
        scan_zoo(tmp_path, made, [PREACT], clean, [WeightStatistics()], 41, runtime())
    monkeypatch.setattr(WeightStatistics, "revision", 1)
    with pytest.raises(AssertionError, match="already"):
        scan_zoo(tmp_path, made, [PREACT], clean, [WeightStatistics()], 40, runtime())


class _Loaded:
    def __init__(self, network: object, sha256: object) -> None:
        self.network, self.sha256 = network, sha256
