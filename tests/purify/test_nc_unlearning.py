"""Unlearning by Neural Cleanse stamps the triggers that a scan found, with true labels, and returns what it tuned."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.planted import CLASSES, SHAPE, network, pictures, planted, runtime
from tests.purify.stages import StopsIn
from tests.purify.test_ft import Nothing
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError, ResumeError
from unbackdoor.evaluate import defense_effectiveness, evaluate
from unbackdoor.models import Network
from unbackdoor.purify import FT, NCUnlearning
from unbackdoor.purify import nc_unlearning as module
from unbackdoor.purify.nc_unlearning import _Found, _Stamping
from unbackdoor.scan import Finding, NeuralCleanse, Reconstruction
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime

GENERATOR = torch.Generator().manual_seed(0)


def trigger(seed: int) -> tuple[Tensor, Tensor]:
    """Return a mask of a few pixels, none of them fully covered, and a pattern of narrow range."""
    draws = torch.Generator().manual_seed(seed)
    mask = (torch.rand(1, *SHAPE[1:], generator=draws) < 0.05) * 0.7
    return mask, 0.3 + 0.2 * torch.rand(SHAPE, generator=draws)


def found(*seeds: int) -> _Found:
    triggers = [trigger(seed) for seed in seeds]
    return _Found(masks=[mask for mask, _ in triggers], patterns=[pattern for _, pattern in triggers], note="told")


class Scans:
    """Stands for the scanner: counts its calls and answers as told."""

    def __init__(self, verdict: bool | None, *classes: int) -> None:
        self.verdict, self.classes = verdict, classes
        self.calls: list[tuple[NeuralCleanse, float | None]] = []

    def __call__(self, scanner: NeuralCleanse, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        self.calls.append((scanner, runtime.budget))
        triggers = [trigger(number) for number in range(CLASSES)]
        return Finding(
            backdoored=self.verdict,
            suspected=self.classes,
            calibrated=False,
            anomaly=torch.zeros(CLASSES),
            threshold=3.5,
            reconstructions=tuple(
                Reconstruction(target=number, mask=mask, pattern=pattern, success=1.0)
                for number, (mask, pattern) in enumerate(triggers)
            ),
            reason="as the test says",
        )


def told(patch: pytest.MonkeyPatch, verdict: bool | None, *classes: int) -> Scans:
    scans = Scans(verdict, *classes)

    def scan(scanner: NeuralCleanse, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        return scans(scanner, model, data, runtime)

    patch.setattr(NeuralCleanse, "scan", scan)
    return scans


# ---- stamping


def stamped(hook: _Stamping, images: Tensor, seed: int = 0) -> Batch:
    hook.begin(network(0), Recipe(), runtime())
    batch = Batch(images=images, targets=torch.arange(len(images)) % CLASSES, rows=torch.arange(len(images)))
    return hook.batch(network(0), batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("share", "count"), [(0.2, 4), (0.01, 1), (0.5, 10), (1.0, 20)])
def test_a_share_of_the_batch_is_mixed_with_the_exact_tensors_and_keeps_its_labels(share: float, count: int) -> None:
    images = torch.rand(20, *SHAPE, generator=GENERATOR)
    batch = stamped(_Stamping(NCUnlearning(stamped=share), found(5)), images)
    mask, pattern = trigger(5)
    torch.testing.assert_close(batch.images[:count], images[:count] * (1 - mask) + pattern * mask)
    assert torch.equal(batch.images[count:], images[count:])
    assert torch.equal(batch.targets, torch.arange(20) % CLASSES)
    assert torch.equal(batch.rows, torch.arange(20))


def test_the_pattern_is_not_stretched_to_the_whole_range_of_pixels() -> None:
    """The published code reads it back from a picture that was; this one's values lie between 0.3 and 0.5."""
    full = _Found(masks=[torch.ones(1, *SHAPE[1:])], patterns=[trigger(5)[1]], note="")
    batch = stamped(_Stamping(NCUnlearning(stamped=1.0), full), torch.rand(4, *SHAPE))
    assert 0.29 < float(batch.images.min()) < float(batch.images.max()) < 0.51


def test_several_triggers_take_turns_within_a_batch_and_over_batches() -> None:
    images = torch.zeros(10, *SHAPE)
    hook = _Stamping(NCUnlearning(stamped=1.0), found(1, 2, 3))
    expected = [mask * pattern for mask, pattern in (trigger(1), trigger(2), trigger(3))]
    firsts = set()
    for seed in range(12):
        batch = stamped(hook, images, seed)
        order = [
            next(number for number, one in enumerate(expected) if torch.allclose(one, image)) for image in batch.images
        ]
        assert order == [(order[0] + step) % 3 for step in range(10)]
        firsts.add(order[0])
    assert firsts == {0, 1, 2}


def test_the_batch_that_was_given_stays() -> None:
    images = torch.rand(10, *SHAPE)
    before = images.clone()
    stamped(_Stamping(NCUnlearning(), found(1)), images)
    assert torch.equal(images, before)


def test_triggers_are_stamped_where_they_were_found_after_crops_and_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, True, 5)
    model, seen = network(0), []
    model.normalize.register_forward_pre_hook(lambda module, images: seen.append((module.training, images[0])))
    method = NCUnlearning(epochs=2, batch_size=12, stamped=0.5)
    method.purify(model, DefenderData(clean=pictures(24, 3)), runtime())
    mask, pattern = trigger(5)
    places = (mask > 0).expand(SHAPE)
    batches = [images for training, images in seen if training]
    assert len(batches) == 4
    for images in batches:
        rest = (images[:6] - pattern * mask)[:, places] / 0.3
        assert float(rest.min()) > -1e-5, "what is left is 0.3 of an image"
        assert float(rest.max()) < 1 + 1e-5


# ---- the whole method


@pytest.mark.parametrize(("verdict", "words"), [(False, "suspects no class"), (None, "is inconclusive")])
def test_without_a_suspected_class_the_model_is_unchanged_and_the_report_says_so(
    verdict: bool | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = told(monkeypatch, verdict)
    suspect = planted(1).suspect
    repaired, history = NCUnlearning().purify(suspect, planted(1).data, runtime())
    assert len(scans.calls) == 1
    assert same_state(state_of(repaired), state_of(suspect))
    assert (history.epochs, history.loss) == (0, [])
    assert history.notes == (f"The model is unchanged, since Neural Cleanse {words}: as the test says.",)


def test_the_fine_tuned_model_is_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """BackdoorBench returns the suspect. With a trigger that changes nothing this is plain fine-tuning."""
    told(monkeypatch, True, 5)
    monkeypatch.setattr(_Stamping, "batch", lambda self, model, batch, generator: batch)
    suspect, data = network(0), DefenderData(clean=pictures(24, 3))
    repaired, history = NCUnlearning(epochs=3, batch_size=12).purify(suspect, data, runtime())
    tuned, expected = FT(epochs=3, batch_size=12).purify(suspect, data, runtime())
    assert same_state(state_of(repaired), state_of(tuned))
    assert (history.epochs, history.loss) == (3, expected.loss)
    (note,) = history.notes
    assert "class 5" in note
    assert "as the test says" in note


def test_all_suspected_triggers_are_unlearned(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, True, 5, 2)
    hooks: list[_Stamping] = []
    begin = _Stamping.begin

    def noted(self: _Stamping, *arguments: Any) -> None:
        hooks.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(_Stamping, "begin", noted)
    method = NCUnlearning(epochs=1, batch_size=12)
    _, history = method.purify(network(0), DefenderData(clean=pictures(24, 3)), runtime())
    assert torch.equal(hooks[0].masks, torch.stack([trigger(5)[0], trigger(2)[0]]))
    assert torch.equal(hooks[0].patterns, torch.stack([trigger(5)[1], trigger(2)[1]]))
    assert "class 5, 2" in history.notes[0]


def test_scan_and_fine_tuning_share_the_budget_and_the_scanner_searches_16_classes_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scans = told(monkeypatch, True, 5)
    budgets: list[float | None] = []
    fit = module.fit

    def noted(*arguments: Any, **options: Any) -> Any:
        budgets.append(arguments[3].budget)
        return fit(*arguments, **options)

    monkeypatch.setattr(module, "fit", noted)
    limited = Runtime(device="cpu", precision="fp32", threads=1, budget=2.0)
    NCUnlearning(rounds=7, epochs=1).purify(network(0), DefenderData(clean=pictures(24, 3)), limited)
    assert scans.calls == [(NeuralCleanse(rounds=7, most_classes=16), 1.0)]
    assert budgets == [1.0]


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_a_planted_backdoor_is_found_and_unlearned_and_the_clean_twin_left_alone(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = planted(seed)
    # The short search of the scanner's own tests.
    short = NeuralCleanse(rounds=40, steps=4, batch_size=8, patience=3)
    monkeypatch.setattr(module, "NeuralCleanse", lambda rounds, most_classes: short)
    method = NCUnlearning(epochs=10, batch_size=32, augmentation="crop")
    repaired, history = method.purify(models.suspect, models.data, runtime(seed))
    before, after, nothing = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, Nothing().purify(models.suspect, models.data, runtime(seed))[0])
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.15
    assert after.acc.value > 0.95
    assert f"class {models.target}" in history.notes[0]
    assert defense_effectiveness(before, after) > 0.9
    assert defense_effectiveness(before, nothing) == 0.5
    left, nothing_done = method.purify(models.twin, models.data, runtime(seed))
    assert same_state(state_of(left), state_of(models.twin))
    assert "suspects no class" in nothing_done.notes[0]


def test_an_interrupted_repair_goes_on_with_the_triggers_of_its_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = told(monkeypatch, True, 5)
    suspect, path, data = network(0), tmp_path / "resume.pt", DefenderData(clean=pictures(24, 3))
    method = NCUnlearning(epochs=4, batch_size=12)
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=StopsIn("NC unlearning", 5))
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, stopping, resume=path)
    again, history = method.purify(suspect, data, runtime(), resume=path)
    assert len(scans.calls) == 1
    whole, expected = method.purify(suspect, data, runtime())
    assert len(scans.calls) == 2
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


def test_a_kept_scan_of_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, False)
    path, data = tmp_path / "resume.pt", DefenderData(clean=pictures(24, 3))
    NCUnlearning().purify(network(0), data, runtime(), resume=path)
    for model, other in ((network(0), pictures(24, 4)), (network(1), pictures(24, 3))):
        with pytest.raises(ResumeError, match="belongs to an interrupted run"):
            NCUnlearning().purify(model, replace(data, clean=other), runtime(), resume=path)


def test_defaults_are_those_of_the_benchmark() -> None:
    expected = NCUnlearning(
        rounds=80, epochs=100, batch_size=256, learning_rate=0.01, stamped=0.2, augmentation="crop-flip"
    )
    assert NCUnlearning() == expected
    assert NeuralCleanse(rounds=NCUnlearning().rounds) == NeuralCleanse()


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"NC unlearning needs clean samples.*--clean"):
        NCUnlearning().purify(network(0), DefenderData(), runtime())


@pytest.mark.parametrize("options", [{"rounds": 0}, {"stamped": 0.0}, {"stamped": 1.1}, {"stamped": math.nan}], ids=str)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^NCUnlearning: .* found "):
        NCUnlearning(**options)
