"""FT-SAM climbs by the adaptive rule, descends from where it began, and unlearns a planted backdoor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.planted import SHAPE, network, pictures, planted, runtime
from tests.purify.test_ft import Nothing, sides_seen
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.evaluate import defense_effectiveness, evaluate
from unbackdoor.models import Description, Network
from unbackdoor.purify import FTSAM
from unbackdoor.purify.ft_sam import _SharpnessAware, adaptive_climb
from unbackdoor.testing.samples import state_of
from unbackdoor.training import Batch, Recipe, Runtime, fit, run


@pytest.mark.parametrize("rho", [0.5, 2.0, 8.0])
def test_climb_equals_the_formula_with_one_norm_over_all_tensors(rho: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (5,), (2, 1, 2, 2)]
    weights, gradients = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    w, g = (np.concatenate([part.double().numpy().ravel() for part in parts]) for parts in (weights, gradients))
    scaled = np.abs(w) * g
    expected = rho * np.abs(w) * scaled / np.linalg.norm(scaled)
    found = torch.cat([part.flatten() for part in adaptive_climb(weights, gradients, rho)])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)
    # The radius, measured as ASAM does: || T^-1 e || = rho.
    assert float(np.linalg.norm(found.numpy() / np.abs(w))) == pytest.approx(rho, rel=1e-4)


def test_climb_goes_uphill_and_leaves_zero_weights_alone() -> None:
    weights, gradients = [torch.tensor([1.0, -1.0, 0.0])], [torch.tensor([2.0, 2.0, 2.0])]
    (climb,) = adaptive_climb(weights, gradients, 1.0)
    assert bool((climb[:2] > 0).all()), "along the gradient, whatever the weight's sign"
    assert climb[2] == 0


def test_without_a_gradient_there_is_no_climb() -> None:
    assert adaptive_climb([torch.ones(3)], [torch.zeros(3)], 2.0)[0].tolist() == [0.0] * 3


def two() -> Network:
    """Return `Two` behind a normalisation that changes nothing."""
    description = Description(
        architecture="two", arguments={}, class_names=("dark", "bright"), image_shape=(1, 4, 4), mean=(0.0,), std=(1.0,)
    )
    return Network(Two(), description)


class Two(nn.Module):
    """Two parameters: logits (a m, b m) of an image of mean m."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7))
        self.b = nn.Parameter(torch.tensor(-1.3))

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([self.a * mean, self.b * mean], 1)


def bright_and_dark() -> ImageSet:
    images = torch.randint(0, 256, (6, 1, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(
        images=images.expand(6, 1, 4, 4).contiguous(),
        labels=torch.tensor([0, 1, 0, 0, 1, 1]),
        class_names=("dark", "bright"),
    )


def gradient_by_hand(w: np.ndarray, data: ImageSet, smoothing: float) -> np.ndarray:
    """Return the gradient of the smoothed cross-entropy with respect to (a, b)."""
    total = np.zeros(2)
    for image, label in zip(data.images, data.labels.tolist()):
        mean = float(image.double().mean()) / 255
        p = np.exp(w * mean) / np.exp(w * mean).sum()
        wanted = np.full(2, smoothing / 2)
        wanted[label] += 1 - smoothing
        total += (p - wanted) * mean
    return total / len(data)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("steps", [1, 4])
def test_steps_equal_a_hand_computation_of_two_parameters(steps: int, smoothing: float) -> None:
    model, data = Two(), bright_and_dark()
    w, moving = np.array([0.7, -1.3]), np.zeros(2)
    for step in range(steps):
        g = gradient_by_hand(w, data, smoothing)
        climb = 2.0 * w**2 * g / np.linalg.norm(np.abs(w) * g)
        g = gradient_by_hand(w + climb, data, smoothing)
        # The step starts from w, not from w + climb, and so does weight decay.
        moving = 0.9 * moving + g + 5e-4 * w
        w = w - 0.3 * (1 + math.cos(math.pi * step / 100)) / 2 * moving
    recipe = Recipe(
        epochs=steps,
        batch_size=6,
        learning_rate=0.3,
        nesterov=False,
        schedule="cosine:100",
        label_smoothing=smoothing,
        ema=0.0,
        augmentation="none",
        low_resolution=0.0,
    )
    fit(model, data, recipe, runtime(), hook=_SharpnessAware(2.0))
    assert [model.a.item(), model.b.item()] == pytest.approx(w.tolist(), abs=1e-5)


def test_the_method_does_the_same_with_its_options() -> None:
    data, w = bright_and_dark(), np.array([0.7, -1.3])
    g = gradient_by_hand(w, data, 0.1)
    g = gradient_by_hand(w + 8.0 * w**2 * g / np.linalg.norm(np.abs(w) * g), data, 0.1)
    expected = w - 0.3 * (g + 5e-4 * w)
    method = FTSAM(epochs=1, batch_size=6, learning_rate=0.3, rho=8.0, augmentation="none")
    repaired, _ = method.purify(two(), DefenderData(clean=data), runtime())
    assert [float(value) for value in repaired.parameters()] == pytest.approx(expected.tolist(), abs=1e-5)


def one_step(model: nn.Module, learning_rate: float) -> Batch:
    """Do one step on 16 pictures in train mode; return its batch."""
    clean = pictures(16, 3)
    batch = Batch(images=clean.images.float() / 255, targets=clean.labels, rows=torch.arange(16))
    hook = _SharpnessAware(2.0)
    hook.begin(model, Recipe(label_smoothing=0.0), runtime())
    hook.update(model.train(), batch, torch.optim.SGD(model.parameters(), learning_rate))
    return batch


def test_weights_are_restored_before_the_step() -> None:
    model = network(0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    one_step(model, 0.0)
    assert all(torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before))


def test_running_statistics_move_once_a_step_as_in_one_plain_pass() -> None:
    model, plain = network(0), network(0)
    batch = one_step(model, 0.1)
    plain.train()(batch.images)
    for name, value in plain.named_buffers():
        if "running" in name:
            torch.testing.assert_close(model.get_buffer(name), value)


def test_a_step_counts_as_one_batch() -> None:
    """It matters where momentum is None: the cumulative average divides by this count."""
    model = network(0)
    one_step(model, 0.1)
    assert int(model.get_buffer("body.1.num_batches_tracked")) == 1


@pytest.fixture
def steps_taken() -> Iterator[list[dict[str, Any]]]:
    """The parameter groups of every optimiser step of the test, without parameters."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    taken: list[dict[str, Any]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        (group,) = optimizer.param_groups
        options = {name: value for name, value in group.items() if name != "params"}
        taken.append({"kind": type(optimizer).__name__, **options})

    handle = register_optimizer_step_pre_hook(note)
    yield taken
    handle.remove()


def test_the_rate_swings_along_a_cosine_of_a_half_period_of_100_steps(steps_taken: list[dict[str, Any]]) -> None:
    FTSAM(epochs=75, batch_size=2, augmentation="none").purify(two(), DefenderData(clean=bright_and_dark()), runtime())
    rates = [taken["lr"] for taken in steps_taken]
    assert len(rates) == 225
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * step / 100)) / 2 for step in range(225)])
    assert (rates[0], rates[50], rates[100], rates[200]) == pytest.approx((0.01, 0.005, 0.0, 0.01))
    first = steps_taken[0]
    assert (first["kind"], first["momentum"], first["weight_decay"], first["nesterov"]) == ("SGD", 0.9, 5e-4, False)


def test_a_budget_uses_all_that_it_affords_and_ends_where_the_rate_is_lowest(
    steps_taken: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps an epoch: 60 epochs are affordable, 180 steps, in which the rate falls once instead of 1.8 times."""
    monkeypatch.setattr(run, "affordable", lambda *_: 60)
    limited = Runtime(device="cpu", precision="fp32", threads=1, budget=1.0)
    method = FTSAM(epochs=75, batch_size=2, augmentation="none")
    _, history = method.purify(two(), DefenderData(clean=bright_and_dark()), limited)
    assert history.epochs == 60
    rates = [taken["lr"] for taken in steps_taken]
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * step / 180)) / 2 for step in range(180)])


def test_a_budget_that_affords_the_schedule_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's schedule ends at the peak of the rate."""
    monkeypatch.setattr(run, "affordable", lambda epochs, *_: epochs)
    limited = Runtime(device="cpu", precision="fp32", threads=1, budget=1.0)
    method = FTSAM(epochs=66, batch_size=2, augmentation="none")
    _, history = method.purify(two(), DefenderData(clean=bright_and_dark()), limited)
    assert history.epochs == 66


def test_defaults_are_those_of_the_paper() -> None:
    expected = FTSAM(
        epochs=100, batch_size=256, learning_rate=0.01, rho=2.0, label_smoothing=0.1, augmentation="crop-flip"
    )
    assert FTSAM() == expected


def test_all_epochs_see_whole_images() -> None:
    assert sides_seen(FTSAM(epochs=2)) == {SHAPE}


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_a_planted_backdoor_is_unlearned_and_accuracy_kept(seed: int) -> None:
    models = planted(seed)
    method = FTSAM(epochs=10, batch_size=32, learning_rate=0.02, augmentation="crop")
    repaired, _ = method.purify(models.suspect, models.data, runtime(seed))
    before, after, nothing = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, Nothing().purify(models.suspect, models.data, runtime(seed))[0])
    )
    assert before.asr is not None
    assert after.asr is not None
    assert after.ra is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.1
    assert after.acc.value > 0.95
    assert after.ra.value > 0.85
    assert defense_effectiveness(before, after) > 0.9
    assert defense_effectiveness(before, nothing) == 0.5


def test_the_seed_decides() -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        repaired, _ = FTSAM(epochs=1, batch_size=8).purify(
            network(0), DefenderData(clean=pictures(24, 3)), runtime(seed)
        )
        return state_of(repaired)

    one, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"FT-SAM needs clean samples.*--clean"):
        FTSAM().purify(network(0), DefenderData(), runtime())


@pytest.mark.parametrize("rho", [0.0, -1.0, math.inf, math.nan])
def test_a_radius_that_cannot_work_is_refused(rho: float) -> None:
    with pytest.raises(InputError, match=r"^FTSAM: rho "):
        FTSAM(rho=rho)
