"""SAU's search, losses and steps, against plain loops over samples, and on a planted backdoor."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from tests.planted import SHAPE, network, pictures, planted, runtime
from tests.purify.test_ft import Nothing, sides_seen
from tests.training.test_resume import Stops
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import defense_effectiveness, evaluate
from unbackdoor.models import Network
from unbackdoor.purify import SAU
from unbackdoor.purify.sau import (
    _Unlearning,
    directions,
    jensen_shannon,
    search_objective,
    unlearning_loss,
    within_length,
    within_sum,
)
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime


def probabilities(count: int, classes: int, seed: int = 0) -> Tensor:
    return (3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)


def test_divergence_is_the_square_of_scipy_s_distance() -> None:
    p, q = probabilities(20, 5, 0), probabilities(20, 5, 1)
    expected = [jensenshannon(a, b) ** 2 for a, b in zip(p.double().numpy(), q.double().numpy())]
    assert jensen_shannon(p, q).tolist() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))


def test_divergence_runs_from_zero_to_the_logarithm_of_two_and_its_gradient_is_finite_there() -> None:
    p = torch.eye(3, dtype=torch.float64).requires_grad_(True)
    q = torch.eye(3, dtype=torch.float64)
    assert jensen_shannon(p, q).tolist() == pytest.approx([0.0] * 3, abs=1e-6)
    apart = jensen_shannon(p, q.roll(1, 0))
    assert apart.tolist() == pytest.approx([math.log(2)] * 3, abs=1e-5)
    apart.sum().backward()
    assert p.grad is not None
    assert bool(p.grad.isfinite().all())


class Case:
    """Random answers of two models to 40 changed images, often equal so that all masks occur."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ours = 3 * torch.randn(40, 4, generator=generator, dtype=torch.float64)
        self.theirs = torch.where(
            torch.rand(40, 1, generator=generator) < 0.5,
            self.ours + 0.3 * torch.randn(40, 4, generator=generator, dtype=torch.float64),
            3 * torch.randn(40, 4, generator=generator, dtype=torch.float64),
        )
        self.labels, self.own, self.suspects = torch.randint(0, 4, (3, 40), generator=generator)


def test_search_objective_is_the_sum_over_samples() -> None:
    case = Case()
    total, finished, kinds = 0.0, [], set()
    for i in range(40):
        a, b = int(case.ours[i].argmax()), int(case.theirs[i].argmax())
        p, q = case.ours[i].softmax(0), case.theirs[i].softmax(0)
        fooled, suspect_fooled = a != int(case.own[i]), b != int(case.suspects[i])
        kinds.add((fooled, suspect_fooled, a == b))
        if not fooled:
            total += 0.3 * math.log(float(p[case.labels[i]])) / 2
        if not suspect_fooled:
            total += 0.3 * math.log(float(q[case.labels[i]])) / 2
        finished.append(fooled and suspect_fooled and a == b)
        if not finished[-1]:
            total += 0.7 * jensenshannon(p.numpy(), q.numpy()) ** 2
    objective, shared = search_objective(
        case.ours, case.theirs, case.labels, case.own, case.suspects, fool_weight=0.3, share_weight=0.7
    )
    assert float(objective) == pytest.approx(total, abs=1e-6)
    assert shared.tolist() == finished
    assert len(kinds) == 8, "every combination of the three masks occurs"


def test_shared_samples_have_no_gradient_and_the_others_have_that_of_finite_differences() -> None:
    case = Case()
    ours, theirs = case.ours.requires_grad_(True), case.theirs.requires_grad_(True)

    def objective(a: Tensor, b: Tensor) -> Tensor:
        return search_objective(a, b, case.labels, case.own, case.suspects, 0.3, 0.7)[0]

    assert torch.autograd.gradcheck(objective, (ours, theirs))
    objective(ours, theirs).backward()
    assert ours.grad is not None
    _, shared = search_objective(ours, theirs, case.labels, case.own, case.suspects, 0.3, 0.7)
    assert bool((ours.grad[shared] == 0).all())
    assert bool((ours.grad[~shared] != 0).any(1).all())


def test_unlearning_loss_is_the_sum_over_fooled_samples_by_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 6 * torch.randn(200, 4, generator=generator, dtype=torch.float64)
    answers = torch.randint(0, 4, (200,), generator=generator)
    fooled = torch.rand(200, generator=generator) < 0.5
    total, extremes = 0.0, 0
    for i in range(200):
        p = float(logits[i].softmax(0)[answers[i]])
        extremes += p < 0.001 or p > 0.999
        if fooled[i]:
            total += (-math.log(1e-6 + min(1 - p, 0.999)) - math.log(1 + 1e-6 - max(p, 0.001))) / 2
    assert extremes > 20
    assert float(unlearning_loss(logits, answers, fooled)) == pytest.approx(total / 200, rel=1e-9)


def test_unlearning_loss_is_finite_at_certainty_and_lets_answers_below_a_thousandth_rest() -> None:
    logits = torch.tensor([[100.0, 0.0], [0.0, 7.0], [0.0, 6.0]], requires_grad=True)
    loss = unlearning_loss(logits, torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.bool))
    loss.backward()
    assert logits.grad is not None
    assert math.isfinite(float(loss.detach()))
    assert logits.grad[1].tolist() == [0.0, 0.0], "p = 0.0009"
    assert logits.grad[2, 0] > 0, "p = 0.0025"


def repaired_a_little(suspect: Network) -> Network:
    """Return a model that differs from the suspect, as one in repair does."""
    model = copy.deepcopy(suspect)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return model


class Scene:
    """A suspect, a model in repair, a batch, and SAU's hook, in double precision so that no sign is by chance."""

    def __init__(self, count: int = 48, **options: Any) -> None:
        self.options = SAU(**options)
        clean = pictures(count, 77)
        suspect = planted(1).suspect
        self.hook = _Unlearning(self.options, suspect, clean)
        self.hook.begin(suspect, Recipe(), runtime())
        self.suspect = copy.deepcopy(suspect).double().eval().requires_grad_(False)
        self.hook.suspect = self.suspect
        self.hook.uncompiled = self.model = repaired_a_little(suspect).double().eval()
        self.batch = Batch(images=clean.images.double() / 255, targets=clean.labels, rows=torch.arange(count))

    def search(self) -> Tensor:
        with torch.no_grad():
            own = self.model(self.batch.images).argmax(1)
        return self.hook.search(self.model, self.batch, own, self.hook.answers[self.batch.rows])


def begun_plainly(scene: Scene) -> Tensor:
    """Return the changes that the search begins with, image by image, from values of the published code."""
    o, x = scene.options, scene.batch.images
    torch.manual_seed(5)
    value = {"max": torch.full_like(x, o.bound), "min": -torch.full_like(x, o.bound), "zero": torch.zeros_like(x)}
    delta = torch.rand_like(x) if o.start == "random" else value[o.start]
    for i in range(len(x)):
        if o.norm == "linf":
            delta[i] = delta[i].clamp(-o.bound, o.bound)
        size = {"l1": delta[i].abs().sum(), "l2": delta[i].norm()}.get(o.norm)
        if size is not None and float(size) > o.bound:
            delta[i] *= o.bound / size
    return delta


def searched_plainly(scene: Scene) -> tuple[Tensor, list[int]]:
    """Do the search of the specification on the whole batch, nothing left out.

    Returns:
        The changed images, and how many are shared before each step.
    """
    o, x, y = scene.options, scene.batch.images, scene.batch.targets
    own, suspects = scene.model(x).argmax(1), scene.suspect(x).argmax(1)
    delta, counts = begun_plainly(scene), []
    for _ in range(o.steps):
        changed = (x + delta).requires_grad_(True)
        ours, theirs = scene.model(changed), scene.suspect(changed)
        a, b = ours.argmax(1) != own, theirs.argmax(1) != suspects
        shared = a & b & (ours.argmax(1) == theirs.argmax(1))
        counts.append(int(shared.sum()))
        if bool(shared.all()):
            break
        adversarial, divergence = torch.zeros(()), torch.zeros(())
        for i in range(len(x)):
            p, q = ours[i].softmax(0).clamp_min(1e-8), theirs[i].softmax(0).clamp_min(1e-8)
            if not a[i]:
                adversarial = adversarial - F.cross_entropy(ours[i], y[i]) / (2 * len(x))
            if not b[i]:
                adversarial = adversarial - F.cross_entropy(theirs[i], y[i]) / (2 * len(x))
            if not shared[i]:
                terms = (p * p.log() + q * q.log() - (p + q) * ((p + q) / 2).log()) / 2
                divergence = divergence + terms.sum() / len(x)
        (gradient,) = torch.autograd.grad(o.fool_weight * adversarial + o.share_weight * divergence, changed)
        if o.norm == "linf":
            delta = (delta - o.step_size * gradient.sign()).clamp(-o.bound, o.bound)
            continue
        if o.norm in ("l1", "none"):
            delta = delta - o.step_size * gradient.sign()
            for i in range(len(x)):
                if o.norm == "l1" and float(delta[i].abs().sum()) > o.bound:
                    delta[i] *= o.bound / delta[i].abs().sum()
            continue
        for i in range(len(x)):
            if float(gradient[i].norm()):
                delta[i] -= o.step_size * gradient[i] / gradient[i].norm()
            if float(delta[i].norm()) > o.bound:
                delta[i] *= o.bound / delta[i].norm()
    return x + delta, counts


@pytest.mark.parametrize(
    "options",
    [
        {"bound": 0.05, "step_size": 0.05},
        {"bound": 0.07, "step_size": 0.02, "steps": 8},
        {"bound": 0.1, "step_size": 0.1, "share_weight": 0.0},
    ],
    ids=str,
)
def test_leaving_out_finished_samples_gives_the_same_deltas_as_keeping_them(options: dict[str, Any]) -> None:
    scene = Scene(**options)
    expected, counts = searched_plainly(scene)
    assert 20 < counts[-1] < 48, "some samples finish and some do not, or this test shows nothing"
    assert len(set(counts)) >= 4, "and not all at once"
    # SAU takes logits as float32, so another machine may round a gradient of nearly zero to another sign.
    same = (scene.search() == expected).flatten(1).all(1)
    assert int(same.sum()) >= 46


def test_finished_samples_are_left_out() -> None:
    options = {"bound": 0.07, "step_size": 0.02, "steps": 8}
    scene = Scene(**options)
    sizes: list[int] = []
    scene.suspect.register_forward_pre_hook(lambda module, images: sizes.append(len(images[0])))
    scene.search()
    counts = searched_plainly(Scene(**options))[1]
    assert sizes[0] == 48
    assert sizes[1:] == pytest.approx([48 - count for count in counts[:-1]], abs=2)
    assert sizes[-1] < 20


def test_the_copy_that_is_timed_does_all_the_work_and_finds_the_same() -> None:
    scene = Scene(bound=0.07, step_size=0.02, steps=8)
    found = scene.search()
    scene.hook = scene.hook.for_timing()
    sizes: list[int] = []
    scene.hook.suspect.register_forward_pre_hook(lambda module, images: sizes.append(len(images[0])))
    same = (scene.search() == found).flatten(1).all(1)
    assert int(same.sum()) >= 46
    assert sizes == [48] * 8


def test_a_search_by_length_equals_a_plain_one_image_by_image() -> None:
    scene = Scene(norm="l2", bound=1.0, step_size=0.25, steps=6)
    expected, counts = searched_plainly(scene)
    assert 5 < counts[-1] < 43, "some samples finish and some do not, or this test shows nothing"
    assert len(set(counts)) >= 4, "and not all at once"
    found = scene.search()
    # SAU takes logits as float32, so another machine may let an image finish a step earlier or later.
    same = ((found - expected).abs() < 1e-3).flatten(1).all(1)
    assert int(same.sum()) >= 46
    assert float((found - scene.batch.images).flatten(1).norm(dim=1).max()) <= 1 + 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "l1", "bound": 15.0, "step_size": 0.03},
        {"norm": "none", "bound": 0.05, "step_size": 0.02},
        {"start": "min", "bound": 0.07, "step_size": 0.02},
        {"start": "zero", "bound": 0.07, "step_size": 0.02},
        {"start": "random", "bound": 0.07, "step_size": 0.02},
        {"start": "random", "norm": "l2", "bound": 1.0, "step_size": 0.25},
    ],
    ids=str,
)
def test_other_bounds_and_starts_equal_a_plain_search(options: dict[str, Any]) -> None:
    scene = Scene(steps=6, **options)
    expected, counts = searched_plainly(scene)
    torch.manual_seed(5)
    found = scene.search()
    same = ((found - expected).abs() < 1e-3).flatten(1).all(1)
    assert int(same.sum()) >= 46
    assert len(counts) > 1, "it takes steps"
    torch.manual_seed(5)
    assert float((found - scene.batch.images - begun_plainly(scene)).abs().max()) > 1e-3, "and they lead somewhere"


def test_without_a_bound_changes_grow_with_the_steps() -> None:
    scene = Scene(norm="none", bound=0.01, step_size=0.05, steps=4, share_weight=0.0)
    scene.hook.stops_early = False
    delta = scene.search() - scene.batch.images
    assert 0.1 < float(delta.abs().max()) <= 0.01 + 4 * 0.05 + 1e-9


def test_a_change_is_scaled_down_to_a_sum_of_its_values() -> None:
    delta = torch.tensor([3.0, -1.0, 0.0, 0.0, 0.5, -0.25, 0.0, 0.0]).view(2, 1, 2, 2)
    assert within_sum(delta, 1.0).flatten(1).tolist() == [[0.75, -0.25, 0.0, 0.0], [0.5, -0.25, 0.0, 0.0]]


@given(st.integers(0, 10**6), st.floats(0.01, 10.0), st.floats(0.0, 10.0))
@settings(max_examples=50, deadline=None)
def test_shortening_gives_the_nearest_change_within_the_bound(seed: int, bound: float, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta = size * torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64)
    nearest = within_length(delta, bound)
    length, before = nearest.flatten(1).norm(dim=1), delta.flatten(1).norm(dim=1)
    assert bool((length <= bound * (1 + 1e-12)).all())
    assert torch.equal(nearest[before <= bound], delta[before <= bound]), "what is within stays, bit by bit"
    torch.testing.assert_close((delta - nearest).flatten(1).norm(dim=1), (before - bound).clamp_min(0))
    torch.testing.assert_close(within_length(nearest, bound), nearest)


def test_the_step_by_length_is_the_steepest_and_rests_without_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    gradient[1] = 0
    step = directions(gradient)
    assert step.flatten(1).norm(dim=1).tolist() == pytest.approx([1, 0, 1])
    torch.testing.assert_close(directions(1e-30 * gradient.float()), step.float(), msg="however small it is")
    others = torch.randn(500, 32, generator=generator, dtype=torch.float64)
    rises = (others / others.norm(dim=1, keepdim=True)) @ gradient.flatten(1).T
    assert bool((rises <= (step * gradient).flatten(1).sum(1) + 1e-9).all())


@pytest.mark.parametrize(("bound", "step_size"), [(0.2, 0.2), (0.1, 0.07), (0.03, 0.5)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_deltas_stay_within_the_bound_whatever_the_steps(bound: float, step_size: float, steps: int) -> None:
    scene = Scene(bound=bound, step_size=step_size, steps=steps)
    delta = scene.search() - scene.batch.images
    assert float(delta.abs().max()) <= bound + 1e-12
    assert not bool((delta == delta.flatten()[0]).all()), "the search has moved"


def test_the_search_starts_at_plus_the_bound_and_is_not_kept_within_valid_pixels() -> None:
    scene = Scene(steps=0, bound=0.2)
    found = scene.search()
    torch.testing.assert_close(found, scene.batch.images + 0.2, atol=0, rtol=0)
    assert float(found.max()) > 1.1


def test_changed_images_stay_within_valid_pixels_where_that_is_asked_for() -> None:
    options = {"bound": 0.3, "step_size": 0.2, "steps": 2, "share_weight": 0.0}
    free, kept = Scene(**options).search(), Scene(valid_pixels=True, **options).search()
    assert (float(free.max()) > 1, float(kept.max())) == (True, 1.0)
    assert 0 <= float(kept.min()) <= float(free.min().clamp_min(0))
    start = (Scene().batch.images + 0.3).clamp(0, 1)
    assert float((kept - start).abs().max()) >= 0.2 - 1e-6, "pixels within the range still move"


def test_with_a_step_as_large_as_the_bound_each_pixel_has_one_of_three_values() -> None:
    scene = Scene()
    delta = (scene.search() - scene.batch.images).flatten()
    assert {round(value, 6) for value in delta.tolist()} <= {-0.2, 0.0, 0.2}


def test_the_search_computes_no_gradient_of_weights() -> None:
    scene = Scene()
    scene.search()
    assert all(p.grad is None for model in (scene.model, scene.suspect) for p in model.parameters())


@pytest.mark.parametrize(("clean_weight", "unlearn_weight"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
def test_outer_loss_and_its_gradient_equal_the_specification(clean_weight: float, unlearn_weight: float) -> None:
    scene = Scene(clean_weight=clean_weight, unlearn_weight=unlearn_weight, bound=0.05, step_size=0.05)
    x, y = scene.batch.images, scene.batch.targets
    changed = scene.search()
    own, theirs, then = scene.model(changed), scene.suspect(changed).argmax(1), scene.suspect(x).argmax(1)
    unlearn, fooled = torch.zeros(()), 0
    for i in range(len(x)):
        if theirs[i] != y[i] and theirs[i] != then[i]:
            p = own[i].softmax(0)[theirs[i]]
            both = -torch.log(1e-6 + (1 - p).clamp_max(0.999)) - torch.log(1 + 1e-6 - p.clamp_min(0.001))
            unlearn, fooled = unlearn + both / 2 / len(x), fooled + 1
    assert 0 < fooled < len(x)
    expected = clean_weight * F.cross_entropy(scene.model(x), y) + unlearn_weight * unlearn
    gradients = torch.autograd.grad(expected, list(scene.model.parameters()))
    loss = scene.hook.loss(scene.model, scene.batch)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for found, gradient in zip(torch.autograd.grad(loss, list(scene.model.parameters())), gradients):
        torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-4)


def test_adversarial_training_adds_the_cross_entropy_of_changed_images() -> None:
    plain, scene = Scene(), Scene(adversarial_weight=0.4)
    changed = scene.search()
    expected = F.cross_entropy(scene.model(changed), scene.batch.targets)
    more = scene.hook.loss(scene.model, scene.batch) - plain.hook.loss(plain.model, plain.batch)
    assert float(expected.detach()) > 0.1
    assert float(more.detach()) == pytest.approx(0.4 * float(expected.detach()), rel=1e-4)


def test_in_training_mode_the_outer_step_normalises_clean_and_changed_images_together() -> None:
    scene, frozen = Scene(train_mode=True), Scene()
    x, y = scene.batch.images, scene.batch.targets
    changed = scene.search()
    assert torch.equal(changed, frozen.search()), "the search runs on running statistics all the same"
    reference = copy.deepcopy(scene.model).train()
    clean, own = reference(torch.cat([x, changed])).chunk(2)
    theirs = scene.suspect(changed).argmax(1)
    fooled = (theirs != y) & (theirs != scene.suspect(x).argmax(1))
    expected = F.cross_entropy(clean, y) + unlearning_loss(own, theirs, fooled)
    loss = scene.hook.loss(scene.model, scene.batch)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert abs(float((loss - frozen.hook.loss(frozen.model, frozen.batch)).detach())) > 1e-3
    assert not any(module.training for module in scene.model.modules())
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(scene.model.get_buffer(name), buffer, msg=name)
    loss.backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in scene.model.parameters())


def test_in_mixed_precision_the_loss_reaches_every_weight() -> None:
    """The search runs under no_grad first; an autocast that kept those casts would cut the weights off."""
    suspect, clean = planted(1).suspect, pictures(24, 3)
    mixed = Runtime(device="cpu", precision="bf16", threads=1)
    hook, model = _Unlearning(SAU(), suspect, clean), repaired_a_little(suspect)
    hook.begin(model, Recipe(), mixed)
    with mixed.autocast():
        loss = hook.loss(model, Batch(images=clean.images.float() / 255, targets=clean.labels, rows=torch.arange(24)))
    loss.backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())


def repair(suspect: Network, seed: int = 0, **options: Any) -> Network:
    method = SAU(**{"rounds": 1, "batch_size": 12, "learning_rate": 1e-3, **options})
    return method.purify(suspect, DefenderData(clean=pictures(24, 3)), runtime(seed))[0]


def test_running_statistics_stay_those_of_the_suspect_while_weights_move() -> None:
    suspect = planted(1).suspect
    repaired = repair(suspect, rounds=2)
    for name, buffer in suspect.named_buffers():
        assert torch.equal(buffer, repaired.get_buffer(name)), name
    assert all(not torch.equal(a, b) for a, b in zip(suspect.parameters(), repaired.parameters()))


@pytest.fixture
def steps_taken() -> Iterator[list[dict[str, Any]]]:
    """Kind and options of the optimiser at every step of the test."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    taken: list[dict[str, Any]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        taken.append({"kind": type(optimizer).__name__, **optimizer.param_groups[0]})

    handle = register_optimizer_step_pre_hook(note)
    yield taken
    handle.remove()


def test_the_optimiser_is_amsgrad_at_a_constant_rate_without_weight_decay(steps_taken: list[dict[str, Any]]) -> None:
    repair(planted(1).suspect, rounds=3)
    assert len(steps_taken) == 6
    for taken in steps_taken:
        assert (taken["kind"], taken["amsgrad"], taken["lr"]) == ("Adam", True, 1e-3)
        assert (taken["weight_decay"], taken["betas"]) == (0.0, (0.9, 0.999))


def test_defaults_are_those_of_the_paper() -> None:
    expected = SAU(rounds=100, batch_size=256, learning_rate=1e-4, bound=0.2, step_size=0.2, steps=5)
    assert SAU() == expected
    assert (SAU().fool_weight, SAU().share_weight, SAU().clean_weight, SAU().unlearn_weight) == (0.01, 1.0, 1.0, 1.0)
    assert (SAU().norm, SAU().start, SAU().adversarial_weight, SAU().train_mode) == ("linf", "max", 0.0, False)


def test_all_rounds_see_whole_images() -> None:
    assert sides_seen(SAU(rounds=2)) == {SHAPE}


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "l2", "bound": 2.0, "step_size": 1.0},
        {"start": "zero"},
        {"train_mode": True},
        {"adversarial_weight": 0.1},
    ],
    ids=str,
)
def test_a_planted_backdoor_is_unlearned_with_the_other_options_too(options: dict[str, Any]) -> None:
    models = planted(1)
    method = SAU(rounds=6, batch_size=32, learning_rate=3e-3, **options)
    repaired, _ = method.purify(models.suspect, models.data, runtime(1))
    after = evaluate(repaired, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
    assert after.asr is not None
    assert after.asr.value < 0.15, "0.95 before"
    assert after.acc.value > 0.95


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_a_planted_backdoor_is_unlearned_and_accuracy_kept(seed: int) -> None:
    models = planted(seed)
    method = SAU(rounds=6, batch_size=32, learning_rate=3e-3)
    repaired, _ = method.purify(models.suspect, models.data, runtime(seed))
    before, after, nothing = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, Nothing().purify(models.suspect, models.data, runtime(seed))[0])
    )
    assert before.asr is not None
    assert after.asr is not None
    assert after.ra is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.15
    assert after.acc.value > 0.95
    assert after.ra.value > 0.8
    assert defense_effectiveness(before, after) > 0.9
    assert defense_effectiveness(before, nothing) == 0.5


@pytest.mark.parametrize("start", ["max", "random"])
def test_an_interrupted_repair_goes_on_with_the_suspect_that_it_began_with(
    start: Literal["max", "random"], tmp_path: Path
) -> None:
    suspect, path = planted(1).suspect, tmp_path / "resume.pt"
    data, method = DefenderData(clean=pictures(24, 3)), SAU(rounds=4, batch_size=12, learning_rate=1e-3, start=start)
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=Stops(5))
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, stopping, resume=path)
    assert path.exists()
    again, history = method.purify(suspect, data, runtime(), resume=path)
    whole, expected = method.purify(suspect, data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


def test_the_seed_decides() -> None:
    suspect = planted(1).suspect
    assert same_state(state_of(repair(suspect, 0)), state_of(repair(suspect, 0)))
    assert not same_state(state_of(repair(suspect, 0)), state_of(repair(suspect, 1)))


def test_the_suspect_stays_as_it_was() -> None:
    suspect = planted(1).suspect
    before = state_of(suspect)
    repair(suspect)
    assert same_state(before, state_of(suspect))
    assert all(isinstance(p, nn.Parameter) and p.grad is None for p in suspect.parameters())


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"SAU needs clean samples.*--clean"):
        SAU().purify(network(0), DefenderData(), runtime())


@pytest.mark.parametrize(
    "options",
    [
        {"bound": 0.0},
        {"step_size": math.inf},
        {"steps": -1},
        {"clean_weight": math.nan},
        {"adversarial_weight": -1.0},
        {"norm": "l3"},
        {"start": "middle"},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^SAU: .* found "):
        SAU(**options)
