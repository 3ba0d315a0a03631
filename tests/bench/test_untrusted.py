"""Cells on poisoned data: what methods are given, what is shared, what is measured, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tests.bench.test_grid import grid, refusal
from tests.planted import pictures
from unbackdoor.attacks import SIG, Attack, BadNets, Blended, WaNet, save_attack
from unbackdoor.attacks.base import CLEAN, POISON
from unbackdoor.bench.axes import Source
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.images import Images
from unbackdoor.bench.poisoned import kept_rows, untrusted_data
from unbackdoor.bench.untrusted import Defence
from unbackdoor.bench.victims import Trained, recipe_of
from unbackdoor.bench.worker import DETAILS, CellOutcome, perform
from unbackdoor.data import DefenderData, ImageSet, clean_rows, read_images
from unbackdoor.errors import InputError
from unbackdoor.folder import ATTACK, MODEL, PAGE, ROWS
from unbackdoor.models import Network, PreActResNet18, load_model
from unbackdoor.models.safetensors_file import write_safetensors
from unbackdoor.options import options_of
from unbackdoor.secure import SecureTrainer, TrapAndReplace
from unbackdoor.secure import Trained as Secured
from unbackdoor.sift import Sifter, SpectralSignatures, Suspicion
from unbackdoor.sift.observed import Observed
from unbackdoor.training import History, Recipe, Runtime, new_network

RUNTIME = Runtime(device="cpu", precision="fp32", threads=1)
NETWORK = partial(PreActResNet18, width=4)


def no_model(*_: object) -> Network:
    raise AssertionError("this attack needs no model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 200 training and 80 test images of eight classes."""
    path = tmp_path_factory.mktemp("data") / "planted.npz"
    parts = {"train": pictures(200, 0), "test": pictures(80, 1)}
    arrays = {f"x_{name}": part.images.permute(0, 2, 3, 1).numpy() for name, part in parts.items()}
    np.savez(path, **arrays, **{f"y_{name}": part.labels.numpy() for name, part in parts.items()})
    return path


def setting(data: Path, attack: Attack | None) -> Trained:
    train, test = read_images(str(data), "train"), read_images(str(data), "test")
    source = Source(str(data), "planted", (train.digest(), test.digest()), train.class_names, train.shape, len(train))
    return Trained(source=source, seed=0, precision="fp32", network=NETWORK, attack=attack, recipe=Recipe())


def cell(kind: str, work: object, needs: Cell | None = None, attack: Attack | None = None) -> Cell:
    recipe = {"attack": recipe_of(attack) if attack else None}
    return Cell(domain=Images(), kind=kind, labels={"seed": 0}, recipe=recipe, work=work, needs=needs)


class Chain:
    """Poisoned data, and what is done with them, each cell by the bench's own worker."""

    def __init__(self, data: Path, attack: Attack | None, folder: Path) -> None:
        self.setting, self.attack, self.folder = setting(data, attack), attack, folder
        self.poison = self.do("poison", self.setting, {})

    def do(self, kind: str, work: object, given: dict[str, bytes], keep: bool = False) -> CellOutcome:
        outcome = perform(cell(kind, work, attack=self.attack), given, self.folder / "work", "cpu", 1, keep)
        assert outcome.trace == "", outcome.trace
        return outcome

    def quick(self) -> CellOutcome:
        return self.do("quick", Defence(setting=self.setting), dict(self.poison.files))

    def sift(self, method: Sifter, after: CellOutcome | None = None) -> CellOutcome:
        return self.do("sift", Defence(setting=self.setting, method=method), dict((after or self.poison).files))

    def secure(self, method: SecureTrainer, clean_size: int | None = None, *, keep: bool = False) -> CellOutcome:
        task = Defence(setting=self.setting, method=method, network=NETWORK, clean_size=clean_size)
        return self.do("secure", task, dict(self.poison.files), keep)


SEEN: list[DefenderData] = []
"""What the methods of these tests were given."""


@dataclass(frozen=True, kw_only=True)
class Patch(Sifter):
    """Scores a row by its lower right pixel, which BadNets makes white: a sifter whose answer is known."""

    held: float = 0.99
    always: ClassVar[bool] = False

    def learn(self, rows: ImageSet, runtime: Runtime, resume: Path | None) -> Network:
        return new_network(NETWORK, rows, runtime)

    def score(
        self, data: DefenderData, runtime: Runtime, model: Network | None = None, resume: Path | None = None
    ) -> Suspicion:
        SEEN.append(data)
        return super().score(data, runtime, model, resume)

    def inspect(self, seen: Observed) -> Suspicion:
        scores = seen.rows.images[:, :, -1, -1].float().mean(1) / 255
        poisoned = scores > self.held
        return Suspicion(scores=scores, clean=~poisoned, poisoned=poisoned)


@dataclass(frozen=True, kw_only=True)
class Recorder(SecureTrainer):
    """Returns an untrained model and remembers what it was given."""

    needs: ClassVar[frozenset[Any]] = frozenset({"clean"})

    def learn(
        self, build_model: Callable[[], Network], data: DefenderData, runtime: Runtime, resume: Path | None
    ) -> Secured:
        SEEN.append(data)
        return Secured(network=build_model(), history=History(epochs=1, loss=[1.0]))


@pytest.fixture
def seen() -> list[DefenderData]:
    """What the methods of this test were given."""
    SEEN.clear()
    return SEEN


def same(one: ImageSet | None, other: ImageSet) -> bool:
    return one is not None and torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def poisoned(data: Path, attack: Attack) -> tuple[ImageSet, torch.Tensor]:
    """Return the data as the attack leaves them, made without the bench."""
    train = read_images(str(data), "train")
    fitted = (
        attack.poison_data(train, RUNTIME) if isinstance(attack, WaNet) else attack.prepare(train, no_model, RUNTIME)
    )
    return fitted.train, fitted.kinds


BADNETS = BadNets(target=1, size=4, poison_rate=0.1)


def test_a_sifter_is_given_the_poisoned_rows_alone_and_judged_by_what_they_are(
    data: Path, tmp_path: Path, seen: list[DefenderData]
) -> None:
    outcome = Chain(data, BADNETS, tmp_path).sift(Patch())
    rows, kinds = poisoned(data, BADNETS)
    (given,) = seen
    assert same(given.untrusted, rows)
    assert given.clean is None
    assert outcome.metrics["auroc"] == outcome.metrics["tpr"] == outcome.metrics["tpr_at_1"] == 1
    white = (rows.images[:, :, -1, -1].float().mean(1) / 255 > 0.99) & (kinds == CLEAN)
    assert outcome.metrics["fpr"] == pytest.approx(int(white.sum()) / int((kinds == CLEAN).sum()))
    assert outcome.metrics["held"] == pytest.approx(int(white.sum() + 20) / 200)
    assert outcome.metrics["seconds"] > 0
    assert outcome.metrics["peak_mb"] > 0
    page = outcome.files[PAGE].decode()
    assert "AUROC" in page
    assert "100.00 %" in page


def test_of_clean_data_a_sifter_can_only_give_false_alarms(data: Path, tmp_path: Path) -> None:
    chain = Chain(data, None, tmp_path)
    assert chain.poison.metrics["poisoned_rows"] == 0
    metrics = chain.sift(Patch(held=0.0)).metrics
    assert metrics["fpr"] == metrics["held"]
    assert metrics["fpr"] > 0.9
    assert not {"auroc", "tpr", "tpr_at_1"} & set(metrics)


@pytest.mark.parametrize(
    ("attack", "kept"),
    [
        (BADNETS, False),
        (Blended(poison_rate=0.1, alpha=0.3), False),
        (BadNets(labels="all-to-all", poison_rate=0.2), False),
        (BadNets(cover_rate=0.1), False),
        # Weaker in training than in testing.
        (SIG(target=2, amplitude=0.1, test_amplitude=0.3, periods=2), True),
        (WaNet(poison_rate=0.1, cover_rate=0.2), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Attack) else str(value),
)
def test_the_rows_that_are_made_again_are_those_of_the_attack(
    data: Path, tmp_path: Path, seen: list[DefenderData], attack: Attack, kept: bool
) -> None:
    chain = Chain(data, attack, tmp_path)
    assert (ROWS in chain.poison.files) == kept
    rows, kinds = poisoned(data, attack)
    chain.sift(Patch())
    assert same(seen[0].untrusted, rows)
    assert chain.poison.metrics["poisoned_rows"] == int((kinds == POISON).sum()) > 0
    assert chain.poison.metrics["covers"] == int((kinds > POISON).sum())


def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["unbackdoor.sift.quick_model"], "LEAST_STEPS", 1)


def test_a_shared_quick_model_gives_what_a_sifter_that_learns_its_own_says(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    chain = Chain(data, BADNETS, tmp_path)
    quick = chain.quick()
    assert {MODEL, ATTACK} <= set(quick.files)
    shared, alone = chain.sift(SpectralSignatures(), quick), chain.sift(SpectralSignatures())
    told = [json.loads(outcome.files[DETAILS])["suspicion"] for outcome in (shared, alone)]
    assert told[0] == told[1]
    for name in ("auroc", "tpr_at_1", "fpr"):
        assert shared.metrics[name] == alone.metrics[name]
    cost = json.loads(quick.files[DETAILS])["cost"]["seconds"]
    assert shared.metrics["learning_seconds"] == cost
    assert shared.metrics["seconds"] >= cost, "with learning, whoever did it"
    assert "learning_seconds" not in alone.metrics
    assert shared.metrics["peak_mb"] >= json.loads(quick.files[DETAILS])["cost"]["peak_mb"], "nor less memory"


def test_poisoned_data_and_their_quick_model_have_pages(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    chain = Chain(data, BADNETS, tmp_path)
    page = chain.poison.files[PAGE].decode()
    assert "What the trigger does" in page
    assert "poisoned rows" in page
    assert "several sifters share" in chain.quick().files[PAGE].decode()
    clean = Chain(data, None, tmp_path / "clean").poison.files[PAGE].decode()
    assert "What the trigger does" not in clean


def test_time_that_is_not_known_is_not_told(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    chain = Chain(data, BADNETS, tmp_path)
    quick = chain.quick()
    resumed = {**quick.files, DETAILS: json.dumps({"cost": {"resumed": 1.0}}).encode()}
    metrics = chain.sift(Patch(), replace(quick, files=resumed)).metrics
    assert metrics["resumed"] == 1
    assert not {"seconds", "learning_seconds"} & set(metrics)


def test_clean_samples_are_held_out_of_the_untrusted_data(data: Path, tmp_path: Path, seen: list[DefenderData]) -> None:
    chain = Chain(data, BADNETS, tmp_path)
    outcome = chain.secure(Recorder(), 40, keep=True)
    train = read_images(str(data), "train")
    rows, _ = poisoned(data, BADNETS)
    held = clean_rows(train, 40, 0)
    others = torch.tensor([row for row in range(200) if row not in set(held.tolist())])
    given = seen[0]
    assert same(given.clean, train.subset(held))
    assert same(given.untrusted, rows.subset(others))
    assert {"acc", "acc_low", "asr", "ra", "seconds", "rounds"} <= set(outcome.metrics)
    assert "mse_clean" not in outcome.metrics
    assert MODEL not in chain.secure(Recorder(), 40).files
    (tmp_path / MODEL).write_bytes(outcome.files[MODEL])
    assert load_model(tmp_path / MODEL).backdoored


def test_all_images_as_clean_samples_leave_none_to_train_on(data: Path, tmp_path: Path) -> None:
    assert "none is left to train on" in Chain(data, None, tmp_path).secure(Recorder(), 200).error


def test_the_reconstruction_error_stands_beside_acc_and_asr(data: Path, tmp_path: Path) -> None:
    method = TrapAndReplace(epochs=1, head_epochs=1, batch_size=100)
    for attack in (BADNETS, None):
        outcome = Chain(data, attack, tmp_path / str(attack is None)).secure(method, 40, keep=True)
        assert 0 < outcome.metrics["mse_clean_low"] < outcome.metrics["mse_clean"] < outcome.metrics["mse_clean_high"]
        assert ("mse_triggered" in outcome.metrics) == ("asr" in outcome.metrics) == (attack is not None)
        assert "decoder.safetensors" in outcome.files
        assert "MSE, clean images" in outcome.files[PAGE].decode()


def test_rows_that_were_tampered_with_are_refused(data: Path, tmp_path: Path) -> None:
    train = read_images(str(data), "train")
    attack = SIG(target=2, amplitude=0.1, test_amplitude=0.3, periods=2)
    fitted = attack.prepare(train, no_model, RUNTIME)
    save_attack(tmp_path / ATTACK, fitted, options_of(attack))
    assert set(kept_rows(fitted, train, tmp_path)) == {ROWS}
    again, _ = untrusted_data(train, tmp_path)
    assert same(again, fitted.train)
    count = int((fitted.kinds != CLEAN).sum())
    images, labels = torch.zeros(count, *train.shape, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    for state in (
        {"images": images[1:], "labels": labels[1:]},
        {"images": images.float(), "labels": labels},
        {"images": images[..., 1:], "labels": labels},
        {"images": images, "labels": labels[1:]},
        {"images": images},
        {"images": images, "labels": labels + 8},
    ):
        (tmp_path / ROWS).write_bytes(write_safetensors(state, {}))
        with pytest.raises(InputError, match="damaged"):
            untrusted_data(train, tmp_path)
    (tmp_path / ROWS).write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(InputError, match="damaged"):
        untrusted_data(train, tmp_path)


def told(cells: list[Cell]) -> list[tuple[object, ...]]:
    return [(one.kind, one.labels["attack"], one.labels["method"], one.labels["clean_size"]) for one in cells]


def test_a_grid_of_sifters_trains_no_victims_and_shares_the_quick_model(tmp_path: Path) -> None:
    cells = grid(tmp_path, "data: digits", "attacks: [BadNets, None]", "sift: [SCAn, {name: FCT, draws: 2}, STRIP]")
    expected = [
        (kind, attack, method, None)
        for attack in ("BadNets", "None")
        for kind, method in (
            ("poison", None),
            ("quick", None),
            ("sift", "SCAn"),
            ("sift", "FCT draws=2"),
            ("sift", "STRIP"),
        )
    ]
    assert told(cells) == expected
    poison, quick, scan, fct, strip = cells[:5]
    assert (poison.needs, quick.needs, scan.needs, fct.needs, strip.needs) == (None, poison, quick, poison, quick)
    assert len({one.title for one in cells}) == 10
    assert poison.title == "poison: digits · PreActResNet18 · BadNets · poison rate 0.1 · bf16 · seed 0"


def test_no_quick_model_is_learned_where_no_sifter_uses_it(tmp_path: Path) -> None:
    cells = grid(tmp_path, "data: digits", "attacks: BadNets", "sift: [FCT, LossIsolation]")
    assert [one.kind for one in cells] == ["poison", "sift", "sift"]


def test_a_grid_of_trainers_has_undefended_victims_and_clean_sizes_where_they_are_needed(tmp_path: Path) -> None:
    lines = ("data: digits", "attacks: BadNets", "secure: [DST, ABL, TrapAndReplace]", "clean_sizes: [50, 100]")
    assert told(grid(tmp_path, *lines)) == [
        ("victim", "BadNets", None, None),
        ("poison", "BadNets", None, None),
        ("secure", "BadNets", "DST", None),
        ("secure", "BadNets", "ABL", None),
        ("secure", "BadNets", "TrapAndReplace", 50),
        ("secure", "BadNets", "TrapAndReplace", 100),
    ]


def test_every_kind_in_one_grid_shares_what_it_can(tmp_path: Path) -> None:
    lines = (
        "data: digits",
        "attacks: BadNets",
        "purify: [FT, DBR]",
        "sift: SCAn",
        "secure: ABL",
        "scan: NeuralCleanse",
    )
    cells = grid(tmp_path, *lines, "clean_sizes: 50")
    assert [one.kind for one in cells] == [*("victim", "scan", "purify", "purify", "poison", "quick", "sift", "secure")]
    alone = grid(tmp_path, "data: digits", "attacks: BadNets", "sift: SCAn")
    assert [one.key for one in alone] == [one.key for one in cells if one.kind in ("poison", "quick", "sift")]


def test_what_changes_a_result_changes_the_keys_that_depend_on_it(tmp_path: Path) -> None:
    def keys(**changes: str) -> dict[str, str]:
        base = {"attacks": "BadNets", "sift": "SCAn", "secure": "TrapAndReplace", "clean_sizes": "50", "seeds": "0"}
        lines = {**base, "networks": "{name: PreActResNet18, width: 8}", **changes}
        cells = grid(tmp_path, "data: digits", *(f"{name}: {value}" for name, value in lines.items()))
        return {one.kind: one.key for one in cells}

    def changed(**changes: str) -> set[str]:
        after = keys(**changes)
        return {kind for kind, key in keys().items() if after[kind] != key}

    everything = {"victim", "poison", "quick", "sift", "secure"}
    assert changed(seeds="1") == everything
    assert changed(attacks="{name: BadNets, size: 2}") == everything
    assert changed(sift="{name: SCAn, threshold: 5}") == {"sift"}
    assert changed(secure="{name: TrapAndReplace, epochs: 5}") == {"secure"}
    assert changed(clean_sizes="60") == {"secure"}
    assert changed(budget="1") == {"quick", "sift", "secure"}
    assert changed(recipe="{epochs: 3}") == {"victim"}, "neither sifters nor trainers use it"


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        (("attacks: BadNets", "sift: FCTT"), 3, "unknown sifter 'FCTT'; did you mean FCT?"),
        (("attacks: BadNets", "sift:", "  - FCT", "  - name: SCAn", "    treshold: 3"), 6, "did you mean threshold?"),
        (("attacks: BadNets", "sift:", "  - FCT", "  - FCT"), 5, "this stands in line 4 already"),
        (("attacks: BadNets", "sift: {name: FCT, draws: 0}"), 3, "draws must be 1 or more"),
        (("attacks: BadNets", "secure: D-ST"), 3, "unknown trainer 'D-ST'"),
        (("attacks: BadNets", "secure:", "  - ABL", "  - {name: DST, epochs: many}"), 5, "epochs cannot be 'many'"),
        (("attacks: BadNets", "secure: FCT"), 3, "unknown trainer 'FCT'"),
        (
            ("attacks:", "  - BadNets", "  - InputAware", "sift: FCT"),
            4,
            "InputAware needs its own training, so it has no poisoned data; put sift into a grid without it",
        ),
        (("secure: ABL", "sift: FCT", "attacks: LIRA"), 4, "put sift and secure into a grid without it"),
    ],
    ids=str,
)
def test_a_wrong_grid_is_refused_with_the_line_and_the_reason(
    tmp_path: Path, lines: tuple[str, ...], line: int, words: str
) -> None:
    found, sentence = refusal(tmp_path, "data: digits", *lines)
    assert words in sentence
    assert found == line


def test_an_attack_that_can_poison_data_as_well_is_accepted(tmp_path: Path) -> None:
    cells = grid(tmp_path, "data: digits", "attacks: WaNet", "sift: FCT")
    assert [one.kind for one in cells] == ["poison", "sift"]
