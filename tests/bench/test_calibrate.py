"""Models are compared with clean ones of their own network, and held-out models are counted right."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from tests.planted import planted, runtime
from tests.scan.tables import finding
from unbackdoor.bench import zoo_scans as module
from unbackdoor.bench.calibrate import check_plan, tables_of, told_of
from unbackdoor.bench.judge import Judged, judged, judged_alone, rate_of
from unbackdoor.bench.zoo import plan
from unbackdoor.bench.zoo_scans import Scanned, scan_zoo
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network, PreActResNet18, WRN16x1, save_model
from unbackdoor.scan import Finding, Scanner, WeightStatistics
from unbackdoor.scan.calibration import HeldOut, Table, compared
from unbackdoor.training import Runtime

CLASSES = 6
NAMES = tuple("abcdef")
PREACT, WRN = partial(PreActResNet18, width=8), partial(WRN16x1, width=16)


def zoo(
    clean: int = 40, backdoored: int = 20, seed: int = 0, networks: Sequence[str] = ("PreActResNet18",)
) -> list[Scanned]:
    """Return made-up models: of backdoored ones the detector "Sees" tells the target, and "Blind" tells nothing.

    A class has large numbers in all models of the first network, and another one in those of the second.
    """
    draws = torch.Generator().manual_seed(seed)
    models = []
    for number in range(clean + backdoored):
        target = None if number < clean else number % CLASSES
        place = number // 2 % len(networks)
        usual = 50.0 * torch.eye(CLASSES)[place]
        seen = torch.randn(CLASSES, generator=draws) + usual
        if target is not None:
            seen[target] += 60.0
        part = "held-out" if number % 2 else "reference" if target is None else "development"
        blind = torch.randn(CLASSES, generator=draws) + usual
        said = {"Sees": finding(seen.tolist()), "Blind": finding(blind.tolist())}
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


def references(models: Sequence[Scanned], detector: str = "Sees") -> dict[str, dict[str, Tensor]]:
    """Return what a detector says of the clean models of each network that others are compared with."""
    some = [one for one in models if one.part == "reference"]
    return {
        name: {detector: torch.stack([one.findings[detector].numbers for one in some if one.network == name])}
        for name in {one.network for one in some}
    }


def test_held_out_models_of_one_kind_judge_nothing() -> None:
    with pytest.raises(InputError, match="judged by held-out models of both kinds"):
        judged("one", references(zoo()), [one for one in zoo() if one.part != "held-out" or one.backdoored], 0.05)


def test_held_out_models_are_counted_as_by_hand() -> None:
    models = zoo()
    clean = references(models)["PreActResNet18"]
    found = judged("Sees", {"PreActResNet18": clean}, models, 0.2)
    held = [one for one in models if one.part == "held-out"]
    compared_with = [compared(clean, one.findings) for one in held]
    alarms = [one.p_value <= 0.2 for one in compared_with]
    accused = [(one, said) for one, said, alarm in zip(held, compared_with, alarms) if alarm and one.target is not None]
    right = [int(said.scores.argmax()) == one.target for one, said in accused]
    assert found.held_out.alarms == sum(alarm for one, alarm in zip(held, alarms) if not one.backdoored)
    assert found.held_out.found == sum(alarm for one, alarm in zip(held, alarms) if one.backdoored) == 10
    assert found.held_out.right_target == sum(right)
    assert sum(pair[1] for pair in found.by_attack.values()) == found.held_out.backdoored == 10
    pairs = [
        (bad_said.score, good_said.score)
        for bad, bad_said in zip(held, compared_with)
        if bad.backdoored
        for good, good_said in zip(held, compared_with)
        if not good.backdoored
    ]
    assert found.auroc == pytest.approx(np.mean([bad > good for bad, good in pairs]))


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


def test_the_table_has_the_numbers_of_the_clean_models_that_are_not_held_out_and_how_it_did() -> None:
    models = zoo()
    (table,), ways = tables(models, PREACT)
    some = [one for one in models if one.part == "reference"]
    assert table.clean_models == len(some) == 20
    for name in ("Blind", "Sees"):
        assert torch.equal(table.clean[name], torch.stack([one.findings[name].numbers for one in some]))
    assert (table.architecture, table.arguments, table.data) == ("PreActResNet18", {"width": 8}, "pictures")
    assert (table.class_names, table.rate) == (NAMES, 0.05)
    assert "PreActResNet18 width=8, made up; 20 clean models to compare with, 30 held out" in table.name
    assert [way.name for way in ways] == ["Verdict", "Blind", "Sees"]
    assert table.held_out == ways[0].held_out
    assert table.held_out.found >= 9
    assert ways[0].auroc > 0.95
    assert ways[1].auroc < 0.8


def test_models_that_judge_and_backdoored_ones_are_not_compared_with() -> None:
    models = zoo()
    changed = [
        one
        if one.part == "reference"
        else replace(one, findings=dict.fromkeys(("Blind", "Sees"), finding([99.0] * CLASSES)))
        for one in models
    ]
    (before,), _ = tables(models, PREACT)
    (after,), _ = tables(changed, PREACT)
    assert torch.equal(before.clean["Sees"], after.clean["Sees"])


def test_a_detector_that_cannot_look_at_some_clean_model_is_left_out() -> None:
    models = zoo()
    some = [replace(one, findings={"Sees": one.findings["Sees"]}) if one.key == "6" else one for one in models]
    (table,), ways = tables(some, PREACT)
    assert list(table.clean) == ["Sees"]
    assert [type(one).__name__ for one in table.detectors] == ["Sees"]
    assert [way.name for way in ways] == ["Verdict", "Sees"]


@dataclass(frozen=True, kw_only=True)
class Sees(Scanner):
    """Stands for a detector of that name."""

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Blind(Sees):
    """Stands for another one."""


def tables(models: list[Scanned], *networks: partial[Any]) -> tuple[list[Table], list[Judged]]:
    return tables_of("made up", "pictures", NAMES, (3, 12, 12), networks, 60, "fp32", (Blind(), Sees()), models)


def test_models_are_compared_with_those_of_their_own_network() -> None:
    models = zoo(clean=80, backdoored=40, networks=("PreActResNet18", "WRN16x1"))
    (first, second), (whole, *_) = tables(models, PREACT, WRN)
    assert (first.architecture, second.architecture) == ("PreActResNet18", "WRN16x1")
    # No model is accused for what is usual of its network, and backdoored ones of both are found.
    for place, table in enumerate((first, second)):
        assert table.clean_models == 20
        assert set(table.clean["Sees"][:, 0].argmax(1).tolist()) == {place}
        assert table.held_out.backdoored == 10
        assert table.held_out.found >= 8
        assert table.held_out.alarms <= 3
    assert whole.held_out.found >= 16
    assert whole.auroc > 0.95


def test_too_few_clean_models_of_a_network_to_compare_with_are_refused() -> None:
    models = zoo(clean=80, backdoored=40, networks=("PreActResNet18", "WRN16x1"))
    few = [one for one in models if one.part != "reference" or one.network != "WRN16x1"]
    with pytest.raises(InputError, match="9 clean ones of its network or more, found 0; make a larger zoo"):
        tables(few, PREACT, WRN)


@pytest.mark.parametrize(
    ("attacks", "rounds", "networks", "words"),
    [
        (["BadNets", "SIG"], 8, ("PreActResNet18", "WRN16x1"), "9 clean ones of its network or more"),
        (["BadNets"], 40, ("WRN16x1",), "judged by held-out models of both kinds; .* with attacks that are held out"),
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
    models = [one for one in zoo(clean=40) if one.part == "reference"]
    assert len(models) == 20
    assert rate_of(models, ["PreActResNet18"]) == 0.05
    assert rate_of(models[:9], ["PreActResNet18"]) == 0.1


def test_the_part_is_that_of_the_name_and_the_seed_whatever_a_row_says() -> None:
    row = {"key": "k", "data": "digits", "network": "n", "attack": None, "backdoored": False, "target": None}
    for seed, part in ((0, "reference"), (8, "reference"), (3, "held-out")):
        other = "reference" if part == "held-out" else "held-out"
        assert Scanned.of({**row, "seed": seed, "part": other}, []).part == part


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
    assert scanned[0].findings["WeightStatistics"].numbers.shape == (1, clean.classes)

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
