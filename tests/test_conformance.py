"""Every registered method passes the public checks, and each check catches the method that breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import broken
from tests.parted import GivenDBR, GivenDST
from tests.scan.tables import TABLE
from unbackdoor.attacks import (
    ATTACKS,
    SIG,
    Attack,
    BadNets,
    Blended,
    Invisible,
    MESAPatch,
    TrojanNN,
    WaNet,
    preparation,
)
from unbackdoor.data import DefenderData
from unbackdoor.errors import OracleError
from unbackdoor.inspect import INSPECTIONS, Insight, Inspection, Material
from unbackdoor.models import Network
from unbackdoor.purify import PURIFIERS
from unbackdoor.scan import SCANNERS, Scanner, patch_search, sub_models, verdict
from unbackdoor.secure import TRAINERS, Trained
from unbackdoor.sift import INPUT_FILTERS, SIFTERS, Sifter, Suspicion
from unbackdoor.sift.observed import Observed
from unbackdoor.testing import (
    CanaryData,
    check_attack,
    check_input_filter,
    check_inspection,
    check_purifier,
    check_scanner,
    check_secure_trainer,
    check_sifter,
)
from unbackdoor.testing.samples import SHAPES, hooks_on, sample_images, sample_network
from unbackdoor.training import Runtime

SHORT = {"epochs": 2, "rounds": 2, "steps": 2, "batch_size": 16, "mask_steps": 2, "warm_up_epochs": 1, "width": 4}
"""Fields that a schedule may have, and values that make it short."""
FEW = {"poison_rate": 0.1, "cover_rate": 0.1}
"""Rates of attacks whose own are no image of the few that are used here."""
OWN: dict[str, dict[str, Any]] = {
    "ABL": {"isolation_epochs": 2, "unlearning_epochs": 2, "isolated": 0.2},
    "ANP": {"iterations": 4},
    "AdaptiveBlend": FEW,
    "AdaptivePatch": FEW,
    "Auto": {"methods": ("CLP",)},
    "DBD": {"projection": 8, "head_epochs": 2, "fine_epochs": 2, "fine_batch_size": 16},
    "DST": {"projection": 8, "head_epochs": 2, "head_learning_rate": 0.1},
    "Beatrix": {"orders": 2},
    "FCT": {"draws": 2},
    "STRIP": {"overlays": 2},
    "MCR": {"end_epochs": 2},
    "MESA": {"betas": (0.9, 0.5)},
    "MESAPatch": {"poison_rate": 0.1},
    "NAD": {"teacher_epochs": 2},
    "RNP": {"unlearning_epochs": 2},
    "TrapAndReplace": {"head_epochs": 2, "head_batch_size": 8},
    "TSBD": {"unlearning_epochs": 2, "neurons": (0.1, 0.5)},
    "TaCT": {**FEW, "covers": (2,)},
    "Weights": {"unlearning_epochs": 2},
}


@pytest.fixture(autouse=True)
def _short_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clean model into which an attack looks learn for a few steps: what it knows is no matter here."""
    monkeypatch.setattr(preparation, "LEAST_STEPS", 10)


@pytest.fixture(autouse=True)
def _brief_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MESA judge triggers by few images, and a verdict hear two detectors: how well they see is no matter here."""
    for module in (patch_search, sub_models):
        monkeypatch.setattr(module, "JUDGED", 16)
    monkeypatch.setattr(verdict, "read_tables", lambda path: (TABLE,))


def shortened(method: Any) -> Any:
    """Return the method with as short a schedule as its fields allow, and rates that give some images."""
    short = {name: value for name, value in SHORT.items() if hasattr(method, name)}
    return replace(method, **short, **OWN.get(type(method).__name__, {}))


LIGHT: dict[str, type[Any]] = {"DBR": GivenDBR, "DST": GivenDST}
"""Methods that would train a model for FCT many times: it has its own check."""
EVERY: list[tuple[str, Callable[[Any], None], type[Any]]] = [
    *((name, check_attack, ATTACKS[name]) for name in ATTACKS),
    *((name, check_purifier, LIGHT.get(name, PURIFIERS[name])) for name in PURIFIERS),
    *((name, check_scanner, SCANNERS[name]) for name in SCANNERS),
    *((name, check_sifter, SIFTERS[name]) for name in SIFTERS),
    *((name, check_input_filter, INPUT_FILTERS[name]) for name in INPUT_FILTERS),
    *((name, check_inspection, INSPECTIONS[name]) for name in INSPECTIONS),
    *((name, check_secure_trainer, LIGHT.get(name, TRAINERS[name])) for name in TRAINERS),
]


@pytest.mark.parametrize(("check", "method"), [row[1:] for row in EVERY], ids=[row[0] for row in EVERY])
def test_every_registered_method_conforms(check: Callable[[Any], None], method: type[Any]) -> None:
    check(shortened(method()))


@pytest.mark.parametrize(
    "attack",
    [
        BadNets(labels="all-to-all", cover_rate=0.1),
        BadNets(labels="clean", patch="grid"),
        BadNets(sources=(1, 2), patch="checker"),
        Blended(pattern="cartoon"),
        MESAPatch(colors="black-and-white", pattern=30, poison_rate=0.2),
        TrojanNN(shape="watermark", opacity=0.3, steps=2),
        Invisible(norm="l0", steps=2),
        WaNet(labels="all-to-all"),
    ],
    ids=str,
)
def test_attacks_conform_with_other_options_too(attack: Attack) -> None:
    check_attack(attack)


# ---- attacks


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (broken.ChangesItsTrainingSet(), "the training set it was given has changed"),
        (broken.DrawsRowsWithoutTheSeed(poison_rate=0.3), "the same seed gave other data"),
        (broken.with_trigger(broken.Idle), "the trigger changes nothing"),
        (broken.with_trigger(broken.Random), "the trigger is not deterministic"),
        (broken.with_trigger(broken.TooBright), r"the trigger leaves \[0, 1\]"),
        (broken.with_trigger(broken.LooksAround), "depends on its company"),
        (broken.with_trigger(broken.Crops), "the trigger changes the shape"),
        (broken.with_trigger(broken.NotInItsState), "the trigger from disk is another"),
        (broken.Spoils(spoil=broken.untouched_image_changed), "untouched images have changed"),
        (broken.Spoils(spoil=broken.true_label_changed), "true labels have changed"),
        (broken.Spoils(spoil=broken.poisoned_label_kept), "poisoned labels are not the wanted ones"),
        (broken.Spoils(spoil=broken.original_labels_lost), "the original labels are not kept"),
        (broken.Spoils(spoil=broken.nothing_poisoned), "nothing is poisoned"),
        (SIG(poison_rate=0.9), "supports none"),
        (broken.Spoils(spoil=broken.poisoned_rows_without_the_trigger), "do not carry a trigger"),
        (broken.Spoils(spoil=broken.one_poisoned_row_without_the_trigger), "do not carry a trigger"),
        (broken.with_batches(broken.batch_changed_in_place), "the batch it was given has changed"),
        (broken.with_batches(broken.batch_of_another_shape), "changes the shape of a batch"),
        (broken.with_batches(broken.batch_too_bright), r"a batch leaves \[0, 1\]"),
        (broken.with_batches(broken.batch_too_dark), r"a batch leaves \[0, 1\]"),
        (broken.with_batches(broken.batch_without_the_seed), "the same seed gave other batches"),
        (broken.with_batches(broken.batch_with_labels_that_nobody_wants), "labels that nobody wants"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_attack_is_caught(attack: Attack, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_attack(attack)


def test_a_trigger_may_be_fainter_in_training_than_in_testing() -> None:
    check_attack(broken.Spoils(spoil=broken.fainter_in_training))


# ---- purifiers


def test_an_honest_purifier_passes_so_the_scaffold_is_not_what_is_caught() -> None:
    check_purifier(broken.Purifies(how=broken.honest))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (broken.returns_its_input, "returned the model that it was given"),
        (broken.changes_weights, "the model that it was given has changed"),
        (broken.changes_statistics, "the model that it was given has changed"),
        (broken.changes_mode, "the model's mode has changed"),
        (broken.freezes, "requires_grad has changed"),
        (broken.leaves_gradients, "gradients are left on the model"),
        (broken.leaves_a_hook_on_the_model, "hooks are left on the model"),
        (broken.leaves_a_hook_on_the_result, "hooks are left on the result"),
        (broken.leaves_it_in_training, "not in evaluation mode"),
        (broken.answers_with_fewer_classes, "does not answer with a number for each class"),
        (broken.answers_with_no_numbers, "does not answer with a number for each class"),
        (broken.draws_without_the_seed, "the same seed gave other weights"),
        (broken.shares_weights, "shares weights with the model"),
        (broken.changes_the_samples, "the clean samples have changed"),
        (broken.refuses, "supports none"),
    ],
)
def test_a_broken_purifier_is_caught(how: broken.Repair, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_purifier(broken.Purifies(how=how))


def test_a_purifier_that_breaks_in_its_repair_is_caught_through_the_base_class_too() -> None:
    with pytest.raises(AssertionError, match="hooks are left on the result"):
        check_purifier(broken.LeavesAHookInRepair())


@pytest.mark.parametrize("name", ["trigger", "target", "test", "poison_mask", "kinds"])
@pytest.mark.parametrize("peek", [getattr, lambda data, name: getattr(data, name, None), hasattr])
def test_a_purifier_that_reaches_for_what_no_defender_has_is_caught(name: str, peek: Callable[..., Any]) -> None:
    def peeks(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
        peek(data, name)
        return own

    with pytest.raises(OracleError, match=f"reached for '{name}', which no defender has"):
        check_purifier(broken.Purifies(how=peeks))


def test_the_canary_hands_out_what_a_defender_has_and_can_be_copied() -> None:
    images = sample_images(SHAPES[0])
    data = CanaryData(clean=images)
    assert data.clean is images
    assert data.untrusted is None
    assert data.need_clean("test") is images
    assert isinstance(replace(data, clean=None), CanaryData)
    copied = copy.deepcopy(data).clean
    assert copied is not None
    assert copied.digest() == images.digest()


# ---- scanners


def test_a_scanner_that_looks_at_all_samples_passes() -> None:
    check_scanner(broken.Scans(how=broken.looks_at_all_samples))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (broken.looks_at_the_first_samples, "the order of the clean samples changes the finding"),
        (broken.scans_without_the_seed, "the same seed gave another finding"),
        (broken.forgets_a_class, "not one anomaly a class"),
        (broken.trains_the_model, "the model that it was given has changed"),
        (broken.hooks_the_model, "hooks are left on the model"),
    ],
)
def test_a_broken_scanner_is_caught(how: Callable[[Network, DefenderData, Runtime], Tensor], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_scanner(broken.Scans(how=how))


def test_a_scanner_that_learns_triggers_passes() -> None:
    check_scanner(broken.Learns(targets=(2, 0)))


@pytest.mark.parametrize(
    ("scanner", "words"),
    [
        (broken.Learns(targets=(2, 2)), "two distributions of one class"),
        (broken.Learns(size=30), "triggers do not fit the images"),
        (broken.Learns(factor=3.0), r"triggers leave \[0, 1\]"),
        (broken.Learns(seed=lambda: int(torch.randint(10**9, ()))), "the same seed gave other triggers"),
    ],
    ids=["twice", "large", "bright", "random"],
)
def test_a_scanner_that_learns_impossible_triggers_is_caught(scanner: Scanner, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_scanner(scanner)


def test_a_scanner_that_reaches_for_the_target_is_caught() -> None:
    def peeks(model: Network, data: DefenderData, runtime: Runtime) -> Tensor:
        return data.target  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(OracleError, match="target"):
        check_scanner(broken.Scans(how=peeks))


def test_the_base_class_puts_samples_in_order_and_hands_out_a_copy_of_the_model() -> None:
    """What breaks a scanner that overrides `scan` is repaired for one that does not."""

    @dataclass(frozen=True, kw_only=True)
    class Inspects(broken.Scans):
        scan = Scanner.scan

    check_scanner(Inspects(how=broken.looks_at_the_first_samples))
    check_scanner(Inspects(how=broken.trains_the_model))


# ---- sifters


def test_an_honest_sifter_passes() -> None:
    check_sifter(broken.Sifts(how=broken.by_brightness))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (broken.by_chance, "the same seed gave other scores"),
        (broken.by_row_number, "the order of the rows changes what is said of them"),
        (broken.forgets_a_row, "not one score a row"),
        (broken.trains_what_it_was_given, "the model that it was given has changed"),
        (broken.hooks_what_it_was_given, "hooks are left on the model"),
        (broken.changes_the_rows, "the clean samples have changed"),
        (broken.refuses_rows, "supports none"),
    ],
)
def test_a_broken_sifter_is_caught(how: broken.Sift, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_sifter(broken.Sifts(how=how))


def test_a_sifter_that_reaches_for_the_poison_mask_is_caught() -> None:
    def peeks(data: DefenderData, runtime: Runtime, model: Network | None) -> Tensor:
        return data.kinds  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(OracleError, match="kinds"):
        check_sifter(broken.Sifts(how=peeks))


def test_the_base_class_puts_rows_in_order_and_hands_out_a_copy_of_the_model() -> None:
    """What breaks a sifter that overrides `score` is repaired for one that does not."""

    @dataclass(frozen=True, kw_only=True)
    class Inspects(Sifter):
        how: broken.Sift

        def inspect(self, seen: Observed) -> Suspicion:
            scores = self.how(DefenderData(untrusted=seen.rows), seen.runtime, seen.model)
            nothing = torch.zeros(len(scores), dtype=torch.bool)
            return Suspicion(scores=scores, clean=nothing, poisoned=nothing)

    check_sifter(Inspects(how=broken.by_row_number))
    check_sifter(Inspects(how=broken.trains_what_it_was_given))


# ---- filters of inputs


def test_an_honest_filter_of_inputs_passes() -> None:
    check_input_filter(broken.Filters(how=broken.by_light))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (broken.without_the_seed, "the same seed gave other scores"),
        (broken.by_place, "the order of the images changes their scores"),
        (broken.by_rank, "depends on its company"),
        (broken.forgets_an_image, "not one score an image"),
        (broken.divides_by_nothing, "scores that are no numbers"),
        (broken.always_scores, "there are scores of no images"),
        (broken.trains_the_filtered_model, "the model that it was given has changed"),
        (broken.darkens_the_images, "the clean samples have changed"),
        (broken.refuses_images, "supports none"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_filter_of_inputs_is_caught(how: broken.Filter, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_input_filter(broken.Filters(how=how))


# ---- inspections


@dataclass(frozen=True, kw_only=True)
class _Looks(Inspection):
    how: Callable[[Network, Material, Runtime], float]

    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        return Insight(headline="seen", rows=(), measured={"seen": self.how(model, material, runtime)})


class _LooksAtTheModelItself(_Looks):
    def inspect(self, model: Network, material: Material, runtime: Runtime, resume: Path | None = None) -> Insight:
        return self.look(model, material, runtime, resume)


def _hang(model: Network) -> float:
    model.register_forward_hook(print)
    return 0.0


@torch.no_grad()
def _scale(model: nn.Module | None) -> float:
    assert model is not None
    next(model.parameters()).mul_(2)
    return 0.0


def test_the_base_class_hands_out_copies_of_the_model_and_the_reference() -> None:
    check_inspection(_Looks(how=lambda model, material, runtime: _hang(model)))
    check_inspection(_Looks(how=lambda model, material, runtime: _scale(model) + _scale(material.reference)))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda model, material, runtime: float(torch.rand(1)), "the same seed gave another insight"),
        (lambda model, material, runtime: _scale(material.reference), "the reference has changed"),
        (lambda model, material, runtime: _hang(material.reference), "hooks are left on the reference"),
        (lambda model, material, runtime: _scale(model), "the model that it was given has changed"),
        (lambda model, material, runtime: _hang(model), "hooks are left on the model"),
    ],
)
def test_a_broken_inspection_is_caught(how: Callable[..., float], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_inspection(_LooksAtTheModelItself(how=how))


# ---- secure trainers


def test_an_honest_secure_trainer_passes() -> None:
    check_secure_trainer(broken.Trains())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (broken.hooks_the_result, "hooks are left on the result"),
        (broken.keeps_training, "not in evaluation mode"),
        (broken.keeps_training_a_part, "not in evaluation mode"),
        (broken.adds_weights_without_the_seed, "the same seed gave other weights"),
        (broken.adds_weights_of_a_part_without_the_seed, "the same seed gave other weights"),
        (broken.changes_the_untrusted_data, "the data that it was given have changed"),
        (broken.calls_it_another_network, "described as another network"),
        (broken.gives_a_layer_more, "its weights are not those of the network described"),
        (broken.gives_nonsense, "its answers are no numbers"),
        (broken.refuses_to_train, "supports none"),
    ],
)
def test_a_broken_secure_trainer_is_caught(fault: Callable[..., Trained], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_secure_trainer(broken.Trains(fault=fault))


def test_a_secure_trainer_that_does_not_go_on_where_it_was_interrupted_is_caught() -> None:
    with pytest.raises(AssertionError, match="an interrupted run ended elsewhere"):
        check_secure_trainer(broken.Trains(resumes=False))


def test_a_secure_trainer_that_reaches_for_the_poisoned_rows_is_caught() -> None:
    def peeks(trained: Trained, data: DefenderData) -> Trained:
        data.kinds  # type: ignore[attr-defined]  # noqa: B018
        return trained

    with pytest.raises(OracleError, match="kinds"):
        check_secure_trainer(broken.Trains(fault=peeks))


# ---- the samples that everything is checked on


@pytest.mark.parametrize(
    "hang",
    [
        lambda module: module.register_forward_hook(print),
        lambda module: module.register_forward_pre_hook(print),
        lambda module: module.register_full_backward_hook(print),
        lambda module: module.register_full_backward_pre_hook(print),
        lambda module: module.register_load_state_dict_pre_hook(print),
        lambda module: module.register_load_state_dict_post_hook(print),
        lambda module: module.register_state_dict_pre_hook(print),
        lambda module: module.register_state_dict_post_hook(lambda *_: None),
        lambda module: module.weight.register_hook(print),
        lambda module: module.weight.register_post_accumulate_grad_hook(print),
    ],
    ids=[
        "forward",
        "pre",
        "backward",
        "backward pre",
        "load pre",
        "load post",
        "state pre",
        "state post",
        "parameter",
        "parameter post",
    ],
)
def test_hooks_of_every_kind_are_counted(hang: Callable[[nn.Module], Any]) -> None:
    network = sample_network(SHAPES[0])
    assert hooks_on(network) == 0
    hang(network.body[0])
    assert hooks_on(network) == 1


def test_samples_are_the_same_every_time_and_hold_every_class() -> None:
    for shape in SHAPES:
        images = sample_images(shape)
        assert images.digest() == sample_images(shape).digest()
        assert images.shape == shape
        assert images.class_counts().tolist() == [12] * 4
        networks = [sample_network(shape) for _ in range(2)]
        answers = [network(images.images.float() / 255) for network in networks]
        assert torch.equal(answers[0], answers[1])
