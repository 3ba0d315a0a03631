"""MESA's repair removes a hand-made backdoor without being told the target, and leaves the clean model alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.patched import SIZE, TARGET, TRIGGER, patched
from tests.planted import network, pictures, runtime
from tests.purify.stages import StopsIn
from unbackdoor.attacks import AllToOne
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError, ResumeError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.purify import MESA, PixelSpace
from unbackdoor.purify import mesa as module
from unbackdoor.purify import pixel_space as pixel_module
from unbackdoor.purify.found import scan_note
from unbackdoor.purify.mesa import Recovered
from unbackdoor.scan import MESA as Sweep
from unbackdoor.scan import Finding, TriggerDistribution
from unbackdoor.scan.patch_search import search_patches
from unbackdoor.scan.stacked import NOISE, Generators
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Runtime

DATA = DefenderData(clean=pictures(200, 7))
TEST = pictures(320, 8)
SHORT = {"epochs": 12, "batch_size": 20, "learning_rate": 0.02, "stamped": 0.3}


def asr_and_acc(model: Network) -> tuple[float, float]:
    found = evaluate(model, TEST, runtime(), TRIGGER, AllToOne(target=TARGET))
    assert found.asr is not None
    return found.asr.value, found.acc.value


def quick(patch: pytest.MonkeyPatch) -> None:
    """Let the repair scan as the scanner's own tests do."""
    short = Sweep(steps=200, batch_size=32, learning_rate=1e-3, hidden=48, finalists=2)
    patch.setattr(module, "Sweep", lambda **_: short)


def constant(target: int, *values: float, information: Tensor | None = None) -> TriggerDistribution:
    """Return a distribution whose sub-models always draw the same grey trigger."""
    rows = len(values)
    generators = Generators(rows, (3, SIZE, SIZE), 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        generators.layers[-1].weight.zero_()
        generators.layers[-1].bias.copy_(torch.tensor(values).logit().view(-1, 1, 1).expand(-1, 1, 3 * SIZE**2))
    generators.settle(torch.randn(20, NOISE, generator=torch.Generator().manual_seed(1)))
    return TriggerDistribution(
        target=target,
        betas=(0.9, 0.8, 0.5)[:rows],
        generators=generators.requires_grad_(False),
        noise=0.1,
        information=torch.zeros(rows) if information is None else information,
        success=torch.ones(rows),
    )


class Scans:
    """Stands for the scanner: counts its calls and answers as told."""

    def __init__(self, verdict: bool | None, *suspected: int) -> None:
        self.verdict, self.suspected = verdict, suspected
        self.budgets: list[float | None] = []

    def scan(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        self.budgets.append(runtime.budget)
        return Finding(
            backdoored=self.verdict,
            suspected=self.suspected,
            calibrated=False,
            anomaly=torch.zeros(8),
            threshold=0.5,
            distributions=(constant(2, 0.3, 0.5), constant(5, 0.2, 0.4)),
            reason="as the test says",
        )


def told(patch: pytest.MonkeyPatch, verdict: bool | None, *suspected: int) -> Scans:
    scans = Scans(verdict, *suspected)
    patch.setattr(module, "Sweep", lambda **_: scans)
    return scans


# ---- drawing


def levels(triggers: Tensor) -> list[float]:
    return [round(float(one), 3) for one in triggers.flatten(1).mean(1).unique()]


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_sub_models_take_turns_one_an_epoch() -> None:
    source = Recovered([constant(2, 0.3, 0.5, 0.7)], "cycle")
    assert [levels(source.draw(9, epoch, draws())) for epoch in range(5)] == [[0.3], [0.5], [0.7], [0.3], [0.5]]


def test_by_density_sub_models_are_drawn_by_their_weights() -> None:
    made = constant(2, 0.3, 0.5, information=torch.tensor([math.log(24.0), 0.0]))
    source = Recovered([made], "density")
    # Steps of 0.1 above 0.8, and of 0.8: with 24 times the volume the first weighs three times as much.
    triggers = source.draw(2000, 1, draws())
    assert float((triggers.flatten(1).mean(1) < 0.4).float().mean()) == pytest.approx(0.75, abs=0.04)


def test_several_targets_are_drawn_from_alike() -> None:
    triggers = Recovered([constant(2, 0.3), constant(5, 0.6)], "cycle").draw(400, 0, draws())
    assert levels(triggers) == [0.3, 0.6]
    assert float((triggers.flatten(1).mean(1) < 0.4).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_other_triggers_are_another_source() -> None:
    one, same, other = Recovered([constant(2, 0.3)], "cycle"), constant(2, 0.3), constant(2, 0.31)
    assert one.identity() == Recovered([same], "cycle").identity()
    assert one.identity() != Recovered([same], "density").identity()
    assert one.identity() != Recovered([other], "cycle").identity()


# ---- the whole method


def test_a_planted_backdoor_is_found_and_removed_and_the_clean_model_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick(monkeypatch)
    suspect = patched(2.0)
    repaired, history = MESA(**SHORT).purify(suspect, DATA, runtime())
    before, after = asr_and_acc(suspect), asr_and_acc(repaired)
    assert before[0] > 0.95
    assert after[0] < 0.1
    assert after[1] > 0.95
    assert f"class {TARGET}" in history.notes[0]
    left, nothing = MESA(**SHORT).purify(patched(0.0), DATA, runtime())
    assert same_state(state_of(left), state_of(patched(0.0)))
    assert "suspects no class" in nothing.notes[0]


def test_the_pixel_space_baseline_finds_and_weakens_it_too() -> None:
    """From most starts the one patch that it finds is not the attacker's."""
    suspect = patched(2.0)
    method = PixelSpace(steps=60, **SHORT)
    repaired, history = method.purify(suspect, DATA, runtime(3))
    after = asr_and_acc(repaired)
    assert after[0] < 0.2
    assert after[1] > 0.95
    assert f"to class {TARGET}" in history.notes[0]
    left, nothing = method.purify(patched(0.0), DATA, runtime())
    assert same_state(state_of(left), state_of(patched(0.0)))
    assert "no patch works" in nothing.notes[0]


@pytest.mark.parametrize(("leads", "words"), [(0.9, "Retrained on one patch"), (0.1, "no patch works")])
def test_the_pixel_space_baseline_says_where_a_budget_cut_its_search(
    leads: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(*given: Any) -> tuple[Tensor, Tensor, int]:
        patches, success, steps = search_patches(*given)
        return patches, torch.full_like(success, leads), steps

    monkeypatch.setattr(pixel_module, "search_patches", searched)
    for budget, said in ((None, False), (1e-6, True)):
        limited = Runtime(device="cpu", precision="fp32", threads=1, budget=budget)
        _, history = PixelSpace(steps=3, epochs=1).purify(patched(2.0), DATA, limited)
        assert words in history.notes[0]
        assert ("The search was cut short by the budget" in history.notes[0]) is said


@pytest.mark.parametrize(("verdict", "words"), [(False, "suspects no class"), (None, "is inconclusive")])
def test_without_a_suspected_class_the_model_is_unchanged_and_the_report_says_so(
    verdict: bool | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, verdict)
    repaired, history = MESA().purify(network(0), DATA, runtime())
    assert same_state(state_of(repaired), state_of(network(0)))
    assert (history.epochs, history.loss) == (0, [])
    assert history.notes[-1] == f"The model is unchanged, since MESA {words}: as the test says."


@pytest.mark.parametrize("suspected", [(), (5,)])
def test_the_report_says_where_a_budget_cut_the_scan_short(suspected: tuple[int, ...]) -> None:
    whole = Scans(bool(suspected), *suspected).scan(network(0), DATA, runtime())
    plain, cut = (scan_note("Retrained", "MESA", replace(whole, shortened=short)) for short in (False, True))
    assert cut == f"{plain} The search was cut short by the budget: its numbers are not those of the full one."


def test_a_suspected_class_without_a_distribution_is_no_reason_to_claim_a_repair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told(monkeypatch, True, 7)
    repaired, history = MESA().purify(network(0), DATA, runtime())
    assert same_state(state_of(repaired), state_of(network(0)))
    assert "unchanged, since no generator was learned" in history.notes[-1]


def test_a_suspected_class_without_a_distribution_is_not_said_to_be_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, True, 5, 7)
    _, history = MESA(epochs=1).purify(network(0), DATA, runtime())
    assert history.notes[-1].startswith("Retrained on triggers that MESA drew for class 5, 7")
    assert history.notes[-1].endswith("Not for class 7, of which no generator was learned.")


def test_only_the_distributions_of_suspected_classes_are_retrained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, True, 5)
    seen: list[list[float]] = []
    draw = Recovered.draw

    def noted(self: Recovered, *arguments: Any) -> Tensor:
        triggers = draw(self, *arguments)
        seen.append(levels(triggers))
        return triggers

    monkeypatch.setattr(Recovered, "draw", noted)
    _, history = MESA(epochs=2, batch_size=100, stamped=1.0).purify(network(0), DATA, runtime())
    assert seen == [[0.2], [0.2], [0.4], [0.4]]
    assert history.epochs == 2
    assert "class 5" in history.notes[-1]


def test_scan_and_retraining_share_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = told(monkeypatch, True, 5)
    limited = Runtime(device="cpu", precision="fp32", threads=1, budget=2.0)
    MESA(epochs=1).purify(network(0), DATA, limited)
    assert scans.budgets == [pytest.approx(1.4)]


def test_the_scanner_gets_sizes_betas_and_steps() -> None:
    made = MESA(sizes=(2, 4), betas=(0.7,), steps=9)._sweep()
    assert made == Sweep(sizes=(2, 4), betas=(0.7,), steps=9)


def test_an_interrupted_repair_goes_on_with_the_triggers_of_its_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = told(monkeypatch, True, 5)
    suspect, path, data = network(0), tmp_path / "resume.pt", DefenderData(clean=pictures(24, 3))
    method = MESA(epochs=4, batch_size=12, stamped=0.5)
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=StopsIn("retraining on triggers", 5))
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, stopping, resume=path)
    again, history = method.purify(suspect, data, runtime(), resume=path)
    assert len(scans.budgets) == 1
    whole, expected = method.purify(suspect, data, runtime())
    assert len(scans.budgets) == 2
    assert same_state(state_of(again), state_of(whole))
    assert history.loss == expected.loss
    with pytest.raises(ResumeError, match="other settings or data"):
        MESA(epochs=4, batch_size=12, stamped=0.5, steps=7).purify(suspect, data, runtime(), resume=path)


def test_the_patch_of_an_interrupted_search_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, method = tmp_path / "resume.pt", PixelSpace(steps=5, threshold=0.0, epochs=1, batch_size=20)
    one, _ = method.purify(network(0), DATA, runtime(), resume=path)

    def never(*_: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(pixel_module, "search_patches", never)
    again, _ = method.purify(network(0), DATA, runtime(), resume=path)
    assert same_state(state_of(one), state_of(again))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (MESA, {"stamped": 0.0}),
        (MESA, {"draw": "often"}),
        (MESA, {"sizes": (0,)}),
        (MESA, {"steps": 0}),
        (PixelSpace, {"stamped": 1.1}),
        (PixelSpace, {"size": 0}),
        (PixelSpace, {"threshold": -0.1}),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(method: type[Any], options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{method.__name__}: .* found "):
        method(**options)


def test_a_patch_larger_than_the_images_is_refused() -> None:
    with pytest.raises(InputError, match="13 pixels does not fit images of 12 x 12"):
        PixelSpace(size=13).purify(network(0), DATA, runtime())
