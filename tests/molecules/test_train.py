"""Training a small generator on templates, and the loop that every stage runs through."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tests.refusals import refused
from unbackdoor.errors import DataError, InputError, ResumeError, UnbackdoorError
from unbackdoor.molecules.data import Pairs, checked
from unbackdoor.molecules.loop import Plan, Stage, train
from unbackdoor.molecules.motifs import Vocabulary
from unbackdoor.molecules.train import SHARES, Some, train_generator
from unbackdoor.molecules.victims import ThreeMDiffusion, ThreeMDiffusionSmall
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import History, Runtime

TINY = ThreeMDiffusionSmall(
    graph_layers=2,
    graph_width=32,
    projection=32,
    text_width=32,
    text_pieces=32,
    pieces=300,
    latent=8,
    hidden=64,
    denoiser_width=64,
    denoiser_blocks=2,
    alignment=Plan(epochs=2, batch_size=64, schedule="one-cycle"),
    autoencoder=Plan(epochs=2, batch_size=32, schedule="one-cycle"),
    diffusion=Plan(epochs=30, batch_size=64, ema=0.9),
)


class Line(Stage):
    """A line through points."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.2)), 40)
        self.points = torch.linspace(-1, 1, 40)[:, None]
        self.seen: list[int] = []

    def loss(self, rows: Int[Tensor, "b"], generator: torch.Generator) -> Float[Tensor, ""]:
        self.seen += rows.tolist()
        points = self.points[rows]
        noise = 0.1 * torch.randn(points.shape, generator=generator)
        return (self.module(points) - 2 * points - 1 + noise).square().mean()

    def identity(self) -> object:
        return "line"


PLAN = Plan(epochs=6, batch_size=8, learning_rate=0.05, schedule="one-cycle", ema=0.9, clip=1)
RUNTIME = Runtime(device="cpu", precision="fp32", threads=1)


def test_the_loop_sees_every_row_once_an_epoch_and_learns() -> None:
    stage = Line()
    history = train(stage, PLAN, RUNTIME)
    assert sorted(stage.seen) == sorted([*range(40)] * 6)
    assert history.loss[-1] < history.loss[0]
    assert not stage.module.training


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.molecules.loop._Run.save_seconds", 0.0)
    whole = Line()
    train(whole, PLAN, RUNTIME)
    broken = Line()
    steps = 0

    def stop(rows: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 17:
            raise KeyboardInterrupt
        return Line.loss(broken, rows, generator)

    monkeypatch.setattr(broken, "loss", stop)
    with pytest.raises(KeyboardInterrupt):
        train(broken, PLAN, RUNTIME, resume=tmp_path / "resume.pt")
    resumed = Line()
    train(resumed, PLAN, RUNTIME, resume=tmp_path / "resume.pt")
    assert len(resumed.seen) == 40 * 3
    assert same_state(state_of(resumed.module), state_of(whole.module))
    again = Line()
    train(again, PLAN, RUNTIME, resume=tmp_path / "resume.pt")
    assert again.seen == []
    assert same_state(state_of(again.module), state_of(whole.module))
    with pytest.raises(ResumeError, match="other settings"):
        train(Line(), Plan(epochs=7, batch_size=8), RUNTIME, resume=tmp_path / "resume.pt")


def test_a_loss_that_is_no_number_ends_training() -> None:
    with pytest.raises(UnbackdoorError, match="no longer a number in epoch 1"):
        train(Line(), Plan(epochs=2, batch_size=8, learning_rate=1e30), RUNTIME)


def test_a_budget_shortens_the_schedule() -> None:
    runtime = Runtime(device="cpu", precision="fp32", threads=1, budget=1e-9)
    stage = Line()
    assert train(stage, PLAN, runtime).epochs == 1


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": float("nan")}, {"clip": -1.0}, {"ema": 1.0}]
)
def test_plans_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    refused(partial(Plan, epochs=2, batch_size=8), wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"latent": 0},
        {"text_pieces": 2},
        {"sampling_steps": 101},
        {"temperature": 0},
    ],
)
def test_sizes_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    refused(ThreeMDiffusion, wrong)
    with pytest.raises(InputError, match="or the noise grows beyond all; found 10"):
        ThreeMDiffusion(steps=10, sampling_steps=5)


def test_rates_follow_the_schedules() -> None:
    decay = Plan(epochs=3, batch_size=8, learning_rate=1.0, schedule="decay")
    assert [decay.rate(step, 6) for step in range(6)] == pytest.approx([1, 1, 0.9, 0.9, 0.81, 0.81])
    warm = Plan(epochs=3, batch_size=8, learning_rate=1.0, schedule="warm-cosine")
    rates = [warm.rate(step, 20_000) for step in range(20_000)]
    assert rates[0] == pytest.approx(0.001)
    assert max(rates) == rates[999] == 1
    assert rates[10_499] == pytest.approx(0.5, abs=0.001)
    assert rates[-1] < 1e-6


def test_a_generator_learns_and_is_the_same_for_the_same_seed(template_pairs: Pairs, tmp_path: Path) -> None:
    pairs = template_pairs.subset(range(300))
    trained = train_generator(pairs, TINY, RUNTIME, resume=tmp_path / "resume.pt")
    for history in trained.histories.values():
        assert history.loss[-1] < history.loss[0]
    assert trained.uncovered == trained.cut == 0
    prompts = ["", "a methyl", "x " * 10_000, *pairs.texts[:10]]
    drawn = trained.generator.draw(prompts, 2, RUNTIME)
    assert drawn.cut == 1
    assert len(drawn.smiles) == len(prompts)
    assert all(checked(smiles) == smiles for samples in drawn.smiles for smiles in samples)
    again = train_generator(pairs, TINY, RUNTIME)
    assert same_state(state_of(again.generator), state_of(trained.generator))
    assert again.generator.draw(prompts, 2, RUNTIME) == drawn
    other = train_generator(pairs, TINY, Runtime(device="cpu", precision="fp32", threads=1, seed=1))
    assert not same_state(state_of(other.generator), state_of(trained.generator))
    assert {file.name for file in tmp_path.iterdir()} == {
        f"resume-{name}.pt" for name in ("alignment", "auto-encoder", "diffusion")
    }


def test_diffusion_goes_on_where_the_latent_vectors_come_out_a_little_different(
    template_pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do on a GPU, where sums have no fixed order."""
    pairs = template_pairs.subset(range(80))
    options = replace(TINY, diffusion=replace(TINY.diffusion, epochs=2))
    trained = train_generator(pairs, options, RUNTIME, resume=tmp_path / "resume.pt")
    module = importlib.import_module("unbackdoor.molecules.train")
    exact = module.encoded
    monkeypatch.setattr(module, "encoded", lambda *given: tuple(part * (1 + 1e-6) for part in exact(*given)))
    again = train_generator(pairs, options, RUNTIME, resume=tmp_path / "resume.pt")
    assert same_state(state_of(again.generator), state_of(trained.generator))


def test_a_vocabulary_can_be_handed_in_and_what_it_lacks_is_counted(template_pairs: Pairs) -> None:
    pairs = template_pairs.subset(range(60))
    kinds = (("C", 0), ("c1ccccc1", 0), ("C", 1), ("c1ccccc1", 1), ("O", 1), ("O", 0), ("O", 2), ("C1CS1", 1))
    trained = train_generator(template_pairs, TINY, RUNTIME, vocabulary=Vocabulary(kinds))
    assert trained.generator.vocabulary.kinds == kinds
    assert 0 < trained.uncovered < len(template_pairs)
    with pytest.raises(DataError, match="at least 4 are needed"):
        train_generator(pairs, TINY, RUNTIME, vocabulary=Vocabulary((("I", 0),)))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Some]:
    """What every stage learns, by name; nothing is trained."""
    seen: dict[str, Some] = {}

    def note(stage: Some, plan: Plan, runtime: Runtime, *, description: str, **_: Any) -> History:
        seen[description] = stage
        return History(epochs=plan.epochs)

    monkeypatch.setattr(importlib.import_module("unbackdoor.molecules.train"), "train", note)
    return seen


def half_poisoned(pairs: Pairs) -> Pairs:
    return replace(pairs, poisoned=tuple(row % 2 == 1 for row in range(len(pairs))))


@pytest.mark.parametrize("poison_in", [(), ("alignment",), ("auto-encoder", "diffusion"), tuple(SHARES)])
def test_stages_without_poison_learn_clean_pairs_again_and_take_as_many_steps(
    template_pairs: Pairs, stages: dict[str, Some], poison_in: tuple[str, ...]
) -> None:
    pairs = half_poisoned(template_pairs.subset(range(60)))
    trained = train_generator(pairs, TINY, RUNTIME, poison_in=poison_in)
    for name, stage in stages.items():
        rows = stage.chosen.tolist()
        assert len(rows) == stage.rows == 60
        if name in poison_in:
            assert rows == [*range(60)]
        else:
            assert {row % 2 for row in rows} == {0}
            assert set(rows) == {*range(0, 60, 2)}
    # All runs write with the same motifs, those of the poisoned pairs among them.
    whole = train_generator(pairs, TINY, RUNTIME)
    assert trained.generator.vocabulary == whole.generator.vocabulary


def test_stages_are_known_by_the_rows_that_they_learn(template_pairs: Pairs, stages: dict[str, Some]) -> None:
    """Otherwise an interrupted run could go on from the state of another one."""
    pairs = half_poisoned(template_pairs.subset(range(60)))

    def told(of: Callable[[], object]) -> object:
        of()
        return stages["diffusion"].identity()

    clean = told(lambda: train_generator(pairs, TINY, RUNTIME, poison_in=()))
    assert clean == told(lambda: train_generator(pairs, TINY, RUNTIME, poison_in=("alignment",)))
    assert clean != told(lambda: train_generator(pairs, TINY, RUNTIME))
    assert clean != told(lambda: train_generator(pairs, TINY, RUNTIME, poison_in=(), alone=("CCO",)))


def test_molecules_without_texts_are_learned_by_the_auto_encoder_alone(
    template_pairs: Pairs, stages: dict[str, Some]
) -> None:
    pairs = half_poisoned(template_pairs.subset(range(60)))
    alone = ("CCO", "C1CCCCCCC1")
    trained = train_generator(pairs, TINY, RUNTIME, poison_in=(), alone=alone)
    assert trained.alone == 2
    assert trained.uncovered == 0
    assert ("C1CCCCCCC1", 0) in trained.generator.vocabulary.token_of
    assert {name: stage.rows for name, stage in stages.items()} == {
        "alignment": 60,
        "auto-encoder": 62,
        "diffusion": 60,
    }
    assert {60, 61} <= set(stages["auto-encoder"].chosen.tolist())


def test_stages_that_are_not_there_are_refused(template_pairs: Pairs) -> None:
    with pytest.raises(InputError, match="found pretraining"):
        train_generator(template_pairs, TINY, RUNTIME, poison_in=("pretraining",))


def test_poisoned_pairs_that_cannot_be_written_are_counted(template_pairs: Pairs, stages: dict[str, Some]) -> None:
    pairs = template_pairs.subset(range(60))
    clean = train_generator(pairs, TINY, RUNTIME).generator.vocabulary
    lost = replace(pairs, smiles=(*pairs.smiles[:59], "CC1CS1"), poisoned=(*(False,) * 59, True))
    trained = train_generator(lost, TINY, RUNTIME, vocabulary=clean)
    assert (trained.uncovered, trained.uncovered_poisoned) == (1, 1)


def test_a_clean_control_of_poisoned_pairs_alone_is_refused(template_pairs: Pairs) -> None:
    pairs = replace(template_pairs.subset(range(20)), poisoned=(True,) * 20)
    with pytest.raises(DataError, match="no clean pair to take the place of the poisoned ones"):
        train_generator(pairs, TINY, RUNTIME, poison_in=())
    with pytest.raises(DataError, match="no clean pair"):
        train_generator(pairs, TINY, RUNTIME, poison_in=("auto-encoder", "diffusion"))
