"""I-BAU's hypergradient is that of the bilevel problem, and it unlearns a planted backdoor."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import CLASSES, SHAPE, network, pictures, planted, runtime
from tests.purify.test_ft import Nothing, sides_seen
from tests.training.test_resume import Stops
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.evaluate import defense_effectiveness, evaluate
from unbackdoor.models import Network
from unbackdoor.purify import IBAU
from unbackdoor.purify.i_bau import _Unlearning, gradient_step, hypergradient
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Quadratic:
    """L_in = d'A d / 2 - d'B w, so that d(w) = A^-1 B w; L_out = |d - c|^2 / 2 + |w|^2 / 2."""

    def __init__(self) -> None:
        root = drawn(0, 4, 4)
        self.a = root @ root.T + 0.5 * torch.eye(4, dtype=torch.float64)
        self.b, self.c, self.w = drawn(1, 4, 3), drawn(2, 4), drawn(3, 3).requires_grad_(True)
        solved = torch.linalg.solve(self.a, self.b @ self.w)
        self.d = solved.detach().requires_grad_(True)
        self.rate = 0.1 / float(torch.linalg.matrix_norm(self.a, 2))

    def found(self, terms: int) -> Tensor:
        outer = ((self.d - self.c).square().sum() + self.w.square().sum()) / 2
        inner = self.d @ self.a @ self.d / 2 - self.d @ self.b @ self.w
        (gradient,) = hypergradient(outer, gradient_step(inner, self.d, self.rate), self.d, [self.w], terms)
        assert gradient is not None
        return gradient


def test_with_many_terms_it_is_the_closed_form_of_a_quadratic() -> None:
    problem = Quadratic()
    back = torch.linalg.solve(problem.a, problem.d - problem.c)
    expected = problem.w + problem.b.T @ back
    torch.testing.assert_close(problem.found(5000), expected.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_with_few_terms_it_is_the_beginning_of_the_series(terms: int) -> None:
    problem = Quadratic()
    jacobian = torch.eye(4, dtype=torch.float64) - problem.rate * problem.a
    g = problem.d - problem.c
    back = sum((torch.linalg.matrix_power(jacobian, k).T @ g for k in range(terms)), torch.zeros(4).double())
    expected = problem.w + problem.rate * problem.b.T @ back
    torch.testing.assert_close(problem.found(terms), expected.detach())


def tiny_problem() -> tuple[Tensor, Tensor, nn.Module, nn.Module]:
    """Return images, labels, a smooth network and a copy, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return drawn(0, 12, 4), torch.arange(12) % 3, model, copy.deepcopy(model)


def solved(model: nn.Module, images: Tensor, labels: Tensor, penalty: float, rate: float) -> Tensor:
    """Return the perturbation that minimises the inner loss, by many gradient steps."""
    delta = torch.zeros(1, 4, dtype=torch.float64)
    for _ in range(400):
        delta.requires_grad_(True)
        loss = penalty * delta.square().sum() - F.cross_entropy(model(images + delta), labels)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta - rate * gradient).detach()
    return delta


def test_it_is_the_derivative_of_the_whole_problem_of_a_tiny_network() -> None:
    images, labels, model, moved = tiny_problem()
    penalty, rate = 0.1, 0.3
    delta = solved(model, images, labels, penalty, rate).requires_grad_(True)
    assert float(delta.detach().norm()) > 0.02
    weights = list(model.parameters())
    outer = F.cross_entropy(model(images + delta), labels)
    inner = penalty * delta.square().sum() - F.cross_entropy(model(images + delta), labels)
    gradients = hypergradient(outer, gradient_step(inner, delta, rate), delta, weights, 200)
    indirect = 0.0
    for number, gradient in enumerate(gradients):
        assert gradient is not None
        for place in range(0, gradient.numel(), 3):
            values = []
            for shift in (1e-4, -1e-4):
                moved.load_state_dict(model.state_dict())
                with torch.no_grad():
                    list(moved.parameters())[number].view(-1)[place] += shift
                best = solved(moved, images, labels, penalty, rate)
                with torch.no_grad():
                    values.append(float(F.cross_entropy(moved(images + best), labels)))
            expected = (values[0] - values[1]) / 2e-4
            assert float(gradient.view(-1)[place]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
            (plain,) = torch.autograd.grad(
                F.cross_entropy(model(images + delta.detach()), labels), [weights[number]], allow_unused=True
            )
            indirect = max(indirect, abs(float(plain.view(-1)[place]) - expected))
    assert indirect > 1e-3, "or the indirect part was not tested"


def test_weights_without_any_part_in_it_get_none_and_those_with_one_part_get_that() -> None:
    d, w, u, idle = (torch.tensor([value], requires_grad=True) for value in (1.0, 2.0, 3.0, 4.0))
    outer, inner = (d * w).sum(), (d * d * u).sum()
    found = hypergradient(outer, gradient_step(inner, d, 0.1), d, [w, u, idle], 1)
    assert found[0] is not None
    assert found[1] is not None
    # d Phi / du = -0.2 d, and d outer / d d = w.
    assert (found[0].item(), found[1].item(), found[2]) == (pytest.approx(1.0), pytest.approx(-0.4), None)


def test_an_outer_loss_without_the_variable_has_its_plain_gradient() -> None:
    d, w = (torch.tensor([value], requires_grad=True) for value in (1.0, 2.0))
    (found,) = hypergradient((w * w).sum(), gradient_step((d * w).sum(), d, 0.1), d, [w], 3)
    assert found is not None
    assert found.item() == 4.0


# ---- the hook


def scene(count: int = 48, batch_size: int = 16, **options: Any) -> tuple[_Unlearning, Network, ImageSet]:
    clean, model = pictures(count, 3), copy.deepcopy(planted(1).suspect).eval()
    hook = _Unlearning(IBAU(**options), clean)
    hook.begin(model, Recipe(batch_size=batch_size), runtime())
    return hook, model, clean


def test_the_perturbation_equals_a_plain_loop_against_the_models_own_answers() -> None:
    hook, model, clean = scene(penalty=0.01)
    assert sorted(torch.cat(list(hook.parts)).tolist()) == list(range(48))
    delta = torch.zeros(SHAPE)
    for rows in hook.parts:
        images = clean.images[rows].float() / 255
        answers = model(images).argmax(1)
        changed = (images + delta).requires_grad_(True)
        (gradient,) = torch.autograd.grad(-F.cross_entropy(model(changed), answers), changed)
        delta = delta - 10 * (gradient.sum(0) + 0.02 * delta)
    torch.testing.assert_close(hook.perturb()[0], delta, rtol=1e-3, atol=1e-4)
    assert float(delta.norm()) > 0.1


def test_the_perturbation_makes_the_model_err() -> None:
    hook, model, clean = scene()
    images = clean.images.float() / 255
    delta = hook.perturb()
    with torch.no_grad():
        before, after = (F.cross_entropy(model(x), clean.labels) for x in (images, images + delta))
    assert float(after) > float(before) + 0.5


def test_labels_do_not_matter_for_the_perturbation() -> None:
    hook, _, clean = scene()
    found = hook.perturb()
    clean.labels.copy_((clean.labels + 1) % CLASSES)
    assert torch.equal(hook.perturb(), found)


@pytest.mark.parametrize(("perturbed", "expected"), [(0.01, 1), (0.25, 4), (0.3, 4), (1.0, 16)])
def test_a_share_of_the_batch_carries_the_perturbation_and_at_least_one_image(perturbed: float, expected: int) -> None:
    hook, model, clean = scene(perturbed=perturbed)
    seen: list[Tensor] = []
    model.normalize.register_forward_pre_hook(lambda module, images: seen.append(images[0].detach()))
    images = clean.images[:16].float() / 255
    batch = Batch(images=images, targets=clean.labels[:16], rows=torch.arange(16))
    hook.outer_loss(batch, torch.full((1, *SHAPE), 0.5))
    changed = (seen[0] - images).flatten(1)
    torch.testing.assert_close(changed[:expected], torch.full_like(changed[:expected], 0.5))
    assert float(changed[expected:].abs().max() if expected < 16 else 0) == 0


def test_one_step_is_adam_along_the_hypergradient() -> None:
    options = {"rounds": 1, "batch_size": 48, "perturbed": 0.5, "steps": 3}
    suspect, clean = planted(1).suspect, pictures(48, 3)
    repaired, history = IBAU(**options).purify(suspect, DefenderData(clean=clean), runtime())
    model = copy.deepcopy(suspect).eval()
    hook = _Unlearning(IBAU(**options), clean)
    hook.begin(model, Recipe(batch_size=48), runtime())
    delta = hook.perturb().requires_grad_(True)
    order = torch.randperm(48, generator=runtime().generator("order", 0))
    images = clean.images[order].float() / 255
    shifted = torch.cat([images[:24] + delta, images[24:]])
    outer = F.cross_entropy(model(shifted), clean.labels[order])
    rows = hook.parts[0]
    inner = 1e-3 * delta.square().sum() - F.cross_entropy(
        model(clean.images[rows].float() / 255 + delta), clean.labels[rows]
    )
    weights = list(model.parameters())
    (step,) = torch.autograd.grad(inner, delta, create_graph=True)
    mapped = delta - 0.1 * step
    total = (first := torch.autograd.grad(outer, delta, retain_graph=True)[0])
    for _ in range(2):
        total = first + torch.autograd.grad(mapped, delta, total, retain_graph=True)[0]
    direct = torch.autograd.grad(outer, weights, retain_graph=True)
    indirect = torch.autograd.grad(mapped, weights, total)
    for found, old, a, b in zip(repaired.parameters(), suspect.parameters(), direct, indirect):
        # Adam's first step is its rate along the sign, where the gradient is far above its epsilon.
        clear = (a + b).abs() > 1e-4
        moved = ((found - old) / 1e-3)[clear]
        torch.testing.assert_close(moved, -(a + b)[clear].sign(), atol=2e-3, rtol=0)
    assert history.loss == [pytest.approx(float(outer.detach()), rel=1e-4)]


def test_a_perturbation_is_made_at_the_beginning_of_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    perturb = _Unlearning.perturb

    def noted(self: _Unlearning) -> Tensor:
        made.append(perturb(self))
        return made[-1]

    monkeypatch.setattr(_Unlearning, "perturb", noted)
    method = IBAU(rounds=3, batch_size=10)
    method.purify(planted(1).suspect, DefenderData(clean=pictures(25, 3)), runtime())
    assert len(made) == 3
    assert not torch.equal(made[0], made[1])


def test_timed_steps_each_bear_their_part_of_the_perturbation() -> None:
    """Else a budget sees the steps of the weights alone: three of twenty parts of a round are the perturbation's."""
    clean, model, seen = pictures(48, 3), copy.deepcopy(planted(1).suspect).eval(), 0

    def count(module: nn.Module, images: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(images[0])

    model.normalize.register_forward_pre_hook(count)
    begun = _Unlearning(IBAU(), clean)
    passes: list[list[int]] = []
    for hook in (begun, begun.for_timing()):
        hook.begin(model, Recipe(batch_size=16), runtime())
        passes.append([])
        for rows in hook.parts:
            seen = 0
            batch = Batch(images=clean.images[rows].float() / 255, targets=clean.labels[rows], rows=rows)
            hook.update(model, batch, torch.optim.SGD(model.parameters(), 0.0))
            passes[-1].append(seen)
    assert passes == [[128, 32, 32], [64, 64, 64]]


def test_running_statistics_stay_and_every_weight_moves() -> None:
    suspect = planted(1).suspect
    repaired, _ = IBAU(rounds=1, batch_size=12).purify(suspect, DefenderData(clean=pictures(24, 3)), runtime())
    for name, buffer in suspect.named_buffers():
        assert torch.equal(buffer, repaired.get_buffer(name)), name
    assert all(not torch.equal(a, b) for a, b in zip(suspect.parameters(), repaired.parameters()))


class Attends(nn.Module):
    """A layer of attention, whose fast kernels have no second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)[:, None]
        mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.head(mixed[:, 0].mean(1))  # type: ignore[no-any-return]


def test_networks_with_attention_are_repaired_too() -> None:
    suspect = Network(Attends(), network(0).description)
    repaired, history = IBAU(rounds=1, batch_size=12).purify(suspect, DefenderData(clean=pictures(24, 3)), runtime())
    assert math.isfinite(history.loss[0])
    assert all(not torch.equal(a, b) for a, b in zip(suspect.parameters(), repaired.parameters()))


def test_a_dead_network_stays_a_network_of_numbers() -> None:
    suspect = network(0)
    with torch.no_grad():
        for parameter in suspect.body[:9].parameters():  # type: ignore[index]
            parameter.zero_()
    repaired, _ = IBAU(rounds=2, batch_size=12).purify(suspect, DefenderData(clean=pictures(24, 3)), runtime())
    assert all(bool(value.isfinite().all()) for value in state_of(repaired).values())


def test_defaults_are_those_of_the_authors_program() -> None:
    expected = IBAU(
        rounds=5,
        batch_size=100,
        learning_rate=1e-3,
        steps=5,
        perturbation_rate=10.0,
        map_rate=0.1,
        penalty=1e-3,
        perturbed=0.01,
    )
    assert IBAU() == expected


def test_all_rounds_see_whole_images() -> None:
    assert sides_seen(IBAU(rounds=2)) == {SHAPE}


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_a_planted_backdoor_is_unlearned_and_accuracy_kept(seed: int) -> None:
    models = planted(seed)
    method = IBAU(rounds=20, batch_size=16)
    repaired, _ = method.purify(models.suspect, models.data, runtime(seed))
    before, after, nothing = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, Nothing().purify(models.suspect, models.data, runtime(seed))[0])
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.2
    assert after.acc.value > 0.95
    assert defense_effectiveness(before, after) > 0.9
    assert defense_effectiveness(before, nothing) == 0.5


def test_the_clean_twin_keeps_its_accuracy() -> None:
    models = planted(1)
    repaired, _ = IBAU(rounds=20, batch_size=16).purify(models.twin, models.data, runtime())
    assert evaluate(repaired, models.test, runtime()).acc.value > 0.95


def test_an_interrupted_repair_goes_on_exactly(tmp_path: Path) -> None:
    suspect, path, data = planted(1).suspect, tmp_path / "resume.pt", DefenderData(clean=pictures(24, 3))
    method = IBAU(rounds=4, batch_size=12)
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, Runtime(device="cpu", precision="fp32", threads=1, progress=Stops(5)), resume=path)
    again, history = method.purify(suspect, data, runtime(), resume=path)
    whole, expected = method.purify(suspect, data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


def test_precision_does_not_matter_for_the_steps() -> None:
    """In bf16 the second derivatives would be noise, so all steps are in float32."""
    suspect, data = planted(1).suspect, DefenderData(clean=pictures(24, 3))
    method = IBAU(rounds=1, batch_size=24)
    mixed = Runtime(device="cpu", precision="bf16", threads=1)
    results = [method.purify(suspect, data, one)[0] for one in (runtime(), mixed)]
    assert same_state(state_of(results[0]), state_of(results[1]))


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"I-BAU needs clean samples.*--clean"):
        IBAU().purify(network(0), DefenderData(), runtime())


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"perturbation_rate": 0.0},
        {"map_rate": math.inf},
        {"penalty": -1.0},
        {"perturbed": 0.0},
        {"perturbed": 1.5},
        {"perturbed": math.nan},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^IBAU: .*found "):
        IBAU(**options)
