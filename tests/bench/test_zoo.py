"""A zoo's parts follow from names and numbers, its models are made once, and each is what its row says."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from unbackdoor.attacks import ATTACKS, SIG, AllToAll, AllToOne, SourceSpecific, TaCT
from unbackdoor.bench import zoo as module
from unbackdoor.bench.zoo import (
    INDEX,
    Entry,
    append,
    attack_of,
    claimed,
    fill,
    is_held_out,
    plan,
    rows_of,
    target_of,
)
from unbackdoor.bench.zoo_scans import scan_zoo, sizes_for, usable_of
from unbackdoor.data import DefenderData, ImageSet, read_images
from unbackdoor.errors import DivergedError, InputError
from unbackdoor.evaluate import Evaluation, Proportion
from unbackdoor.models import Network, PreActResNet18, WRN16x1, load_model
from unbackdoor.scan import Finding, Scanner
from unbackdoor.training import Recipe, Runtime, UserNetwork

RECIPE = Recipe(epochs=1, batch_size=32, low_resolution=0.0, augmentation="none")
RUNTIME = Runtime(device="cpu", precision="fp32", threads=1)


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    train, test = (read_images("digits", split) for split in ("train", "test"))
    return train, test.subset(torch.arange(80))


def test_half_of_the_attacks_are_held_out_and_renaming_none_moves_another() -> None:
    held = {name for name in ATTACKS if is_held_out(name)}
    assert held == {
        *("BPP", "Blended", "Blind", "Invisible", "LIRA", "LabelConsistent"),
        *("MESAPatch", "SIG", "Smooth", "TrojanNN", "WaNet"),
    }


def test_no_attack_and_no_seed_is_on_both_sides() -> None:
    entries = plan("digits", sorted(ATTACKS), 4)
    assert len({entry.key for entry in entries}) == len(entries) == 88
    sides = [(entry, entry.part == "held-out") for entry in entries]
    for name in ("attack", "seed"):
        both = {getattr(e, name) for e, held in sides if held} & {getattr(e, name) for e, held in sides if not held}
        assert both <= {None}, name
    assert Counter(entry.part for entry in entries if entry.attack) == {"development": 22, "held-out": 22}
    assert Counter(entry.part for entry in entries if entry.attack is None) == {"reference": 22, "held-out": 22}
    # Each network meets both kinds on both sides.
    kinds = Counter((entry.network, entry.attack is None, entry.part == "held-out") for entry in entries)
    assert len(kinds) == 8
    assert min(kinds.values()) >= 10


@pytest.mark.parametrize("count", [4, 5, 6, 7, 22])
def test_every_part_has_clean_models_of_both_networks_alike(count: int) -> None:
    entries = plan("digits", sorted(ATTACKS)[:count], 12)
    for part in ("reference", "held-out"):
        found = Counter(entry.network for entry in entries if entry.attack is None and entry.part == part)
        assert len(found) == 2, part
        assert max(found.values()) - min(found.values()) <= 2, part


def test_a_zoo_can_have_one_network_alone() -> None:
    entries = plan("digits", ["BadNets", "SIG"], 4, (partial(PreActResNet18, width=4),))
    assert {entry.network for entry in entries} == {"PreActResNet18"}
    user = UserNetwork.named("tests.commands.networks:tiny")
    (key, *_) = [entry.key for entry in plan("digits", ["BadNets"], 1, (user,))]
    assert key == "digits-tests.commands.networks.tiny-None-0"


def test_backdoored_models_share_their_seeds_with_no_other(digits: tuple[ImageSet, ImageSet]) -> None:
    entries = plan("digits", sorted(ATTACKS), 6)
    seeds = Counter(entry.seed for entry in entries)
    assert set(seeds.values()) == {1}
    targets = {
        attack_of(one, digits[0], dataclasses.replace(RUNTIME, seed=one.seed)).target  # type: ignore[attr-defined]
        for one in entries
        if one.attack and one.part == "held-out"
    }
    assert len(targets) == 10, "33 models of held-out attacks have targets of their own"


def test_the_first_rounds_of_a_zoo_are_a_smaller_zoo() -> None:
    names = sorted(ATTACKS)
    assert plan("digits", names, 4)[:44] == plan("digits", names, 2)
    assert plan("digits", names[::-1], 2) == plan("digits", names, 2)


def test_a_held_out_attack_with_a_seed_that_is_not_held_out_has_no_part() -> None:
    def part(attack: str, seed: int) -> str | None:
        return Entry(data="d", network="n", attack=attack, seed=seed).part

    assert (part("SIG", 0), part("SIG", 1)) == (None, "held-out")
    assert (part("BadNets", 0), part("BadNets", 1)) == ("development", None)


@pytest.mark.parametrize(
    ("rounds", "attacks", "words"), [(0, ["SIG"], "1 round"), (1, ["BadNet"], "did you mean BadNets")]
)
def test_a_plan_that_cannot_be_is_refused(rounds: int, attacks: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan("digits", attacks, rounds)


def entry(attack: str | None, seed: int = 0) -> Entry:
    return Entry(data="digits", network="WRN16x1", attack=attack, seed=seed)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_gets_a_target_of_its_seed_and_options_that_fit_each_other(
    name: str, digits: tuple[ImageSet, ImageSet]
) -> None:
    made = [attack_of(entry(name, seed), digits[0], dataclasses.replace(RUNTIME, seed=seed)) for seed in range(8)]
    assert len({one.target for one in made}) > 3  # type: ignore[attr-defined]
    assert made[0] == attack_of(entry(name), digits[0], RUNTIME)
    for one in made:
        if isinstance(one, TaCT):
            assert len({one.target, *one.sources, *one.covers}) == 4
        if isinstance(one, SIG):
            share = float((digits[0].labels == one.target).float().mean())
            assert one.poison_rate <= 0.6 * share + 1e-9


def test_the_target_is_that_of_attacks_that_have_one() -> None:
    assert target_of(AllToOne(target=3)) == target_of(SourceSpecific(sources=(1,), target=3)) == 3
    assert target_of(AllToAll(classes=10)) is None
    assert target_of(None) is None


def test_models_are_made_once_and_are_what_their_rows_say(
    tmp_path: Path, digits: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = digits
    # SSBA is the refused one: as if its network did not fit.
    entries = [entry(None), entry("BadNets"), entry("SSBA")]

    def refuses(*_: object) -> None:
        raise InputError("cannot")

    monkeypatch.setattr(ATTACKS["SSBA"], "prepare", refuses)
    rows = fill(tmp_path, entries, train, test, 120, RECIPE, RUNTIME)
    clean, backdoored, refused = rows
    assert (clean["part"], clean["target"], clean["asr"], clean["backdoored"]) == ("reference", None, None, False)
    assert clean["backdoored"] is False
    assert refused["refused"] == "cannot"
    loaded = load_model(tmp_path / backdoored["file"])
    assert loaded.sha256 == backdoored["sha256"]
    assert loaded.backdoored is not None
    assert loaded.backdoored["criterion"]["target"] == backdoored["target"]
    assert load_model(tmp_path / clean["file"]).backdoored is None
    assert not [path for path in (tmp_path / "work").iterdir() if path.is_dir()], "states are gone"

    def again(*_: object, **__: object) -> None:
        raise AssertionError("it is there already")

    monkeypatch.setattr(module, "fit", again)
    assert fill(tmp_path, entries, train, test, 120, RECIPE, RUNTIME) == rows
    with pytest.raises(InputError, match="another recipe"):
        fill(tmp_path, entries, train, test, 100, RECIPE, RUNTIME)
    with pytest.raises(InputError, match="of another network"):
        fill(tmp_path, entries, train, test, 120, RECIPE, RUNTIME, (partial(WRN16x1, width=8),))


def test_models_are_scanned_with_images_that_they_were_not_trained_on(
    tmp_path: Path, digits: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = digits
    images = train.images.clone()
    # A number in the corner of each.
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(len(train)) % 256, torch.arange(len(train)) // 256
    train = dataclasses.replace(train, images=images)
    seen: dict[str, set[int]] = {}

    def note(name: str, some: ImageSet) -> None:
        corner = some.images[:, 0, 0, :2].int()
        seen[name] = set((corner[:, 0] + 256 * corner[:, 1]).tolist())

    def fit(model: object, data: ImageSet, *_: object, **__: object) -> None:
        note("trained on", data)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Looks(Scanner):
        def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
            note("scanned with", data.need_clean("test"))
            anomaly = torch.zeros(10)
            return Finding(backdoored=None, suspected=(), calibrated=False, anomaly=anomaly, threshold=1.0)

    monkeypatch.setattr(module, "fit", fit)
    rows = fill(tmp_path, [entry(None, 2)], train, test, 5000, RECIPE, RUNTIME)
    for size in sizes_for(train):
        scan_zoo(tmp_path, rows, module.NETWORKS, train, [Looks()], size, RUNTIME)
        assert len(seen["scanned with"]) == size
        assert not seen["scanned with"] & seen["trained on"]
    assert sizes_for(train) == (50, 250)
    assert len(seen["trained on"] | seen["scanned with"]) == len(train)
    assert sizes_for(train.subset(torch.arange(80))) == (20,)


def interrupt(monkeypatch: pytest.MonkeyPatch, out: Path, train: ImageSet, test: ImageSet, recipe: Recipe) -> None:
    """Begin a zoo of one model, and stop when it is trained and not yet measured."""

    def stops(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "evaluate", stops)
        with pytest.raises(KeyboardInterrupt):
            fill(out, [entry("BadNets")], train, test, 100, recipe, RUNTIME)


def test_an_interrupted_model_goes_on_and_ends_as_it_would_have(
    tmp_path: Path, digits: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = digits
    recipe = dataclasses.replace(RECIPE, epochs=2)
    whole = fill(tmp_path / "whole", [entry("BadNets")], train, test, 100, recipe, RUNTIME)
    interrupt(monkeypatch, tmp_path / "cut", train, test, recipe)
    states = list((tmp_path / "cut" / "work").glob("*/resume.pt"))
    assert len(states) == 1
    rest = fill(tmp_path / "cut", [entry("BadNets")], train, test, 100, recipe, RUNTIME)
    assert rest[0]["sha256"] == whole[0]["sha256"]


def test_a_state_of_another_recipe_is_no_refusal_and_training_begins_anew(
    tmp_path: Path, digits: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = digits
    interrupt(monkeypatch, tmp_path / "cut", train, test, RECIPE)
    other = dataclasses.replace(RECIPE, learning_rate=0.02)
    (row,) = fill(tmp_path / "cut", [entry("BadNets")], train, test, 100, other, RUNTIME)
    (fresh,) = fill(tmp_path / "fresh", [entry("BadNets")], train, test, 100, other, RUNTIME)
    assert row["sha256"] == fresh["sha256"]


@pytest.mark.parametrize(("attack", "stage"), [("BadNets", "fit"), ("BadNets", "evaluate"), (None, "fit")])
def test_a_model_that_cannot_be_made_has_a_row_that_says_why(
    attack: str | None,
    stage: str,
    tmp_path: Path,
    digits: tuple[ImageSet, ImageSet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loss that is no number, or a trigger that changes no pixel of the test images."""

    def fails(*_: object, **__: object) -> None:
        raise DivergedError("no number")

    monkeypatch.setattr(module, stage, fails)
    (row,) = fill(tmp_path, [entry(attack)], *digits, 100, RECIPE, RUNTIME)
    assert row["refused"] == "no number"
    assert usable_of([row]) == []


def test_what_no_clean_model_can_be_made_of_is_refused_at_once(
    tmp_path: Path, digits: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise InputError("images of this size")

    monkeypatch.setattr(module, "fit", fails)
    with pytest.raises(InputError, match="of this size"):
        fill(tmp_path, [entry(None)], *digits, 100, RECIPE, RUNTIME)


def test_what_another_process_is_at_is_left_to_it(tmp_path: Path, digits: tuple[ImageSet, ImageSet]) -> None:
    train, test = digits
    with claimed(tmp_path, entry(None).key) as mine:
        assert mine
        assert fill(tmp_path, [entry(None)], train, test, 100, RECIPE, RUNTIME) == []
    assert len(fill(tmp_path, [entry(None)], train, test, 100, RECIPE, RUNTIME)) == 1


@pytest.mark.parametrize("line", ["{", "[]", '{"a": 1}', '{"key": 3}', '{"key": "x"}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / INDEX).write_text(line + "\n")
    with pytest.raises(InputError, match="remove the line"):
        rows_of(tmp_path / INDEX)


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"key": str(number), "value": number / 3} for number in range(3)]
    for row in rows:
        append(tmp_path / INDEX, row)
    assert rows_of(tmp_path / INDEX, frozenset({"value"})) == rows
    assert [json.loads(line) for line in (tmp_path / INDEX).read_text().splitlines()] == rows
    assert rows_of(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(("asr", "backdoored"), [(0, None), (49, None), (50, True), (100, True)])
def test_an_attack_that_works_on_less_than_half_of_the_images_leaves_no_backdoored_model(
    tmp_path: Path,
    digits: tuple[ImageSet, ImageSet],
    monkeypatch: pytest.MonkeyPatch,
    asr: int,
    backdoored: bool | None,
) -> None:
    measured = Evaluation(acc=Proportion(9, 10), asr=Proportion(asr, 100), ra=Proportion(0, 100))
    monkeypatch.setattr(module, "fit", lambda *_, **__: None)
    monkeypatch.setattr(module, "evaluate", lambda *_: measured)
    (row,) = fill(tmp_path, [entry("BadNets")], *digits, 100, RECIPE, RUNTIME)
    assert row["backdoored"] is backdoored
