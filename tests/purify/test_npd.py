"""NPD's search, losses and stages, against plain loops; its plug in model and file; and a planted backdoor."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import NAMES, SHAPE, network, pictures, planted, runtime
from tests.purify.test_ft import Nothing, sides_seen
from tests.training.test_resume import Stops
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.evaluate import defense_effectiveness, evaluate
from unbackdoor.models import Description, Edit, Network, build_network, insert_plug, load_model, save_model
from unbackdoor.models.plugs import KINDS
from unbackdoor.purify import NPD, frozen
from unbackdoor.purify.frozen import Frozen
from unbackdoor.purify.npd import _Polarizing, _WarmUp, lowered, projected, second_choice
from unbackdoor.purify.places import default_place
from unbackdoor.testing.samples import hooks_on, same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime

PLACE = "3"
"""The default one of the planted network: the second of its three convolutions."""


def staged(architecture: str = "WRN16x1", seed: int = 0) -> Network:
    """Return a small network that can be cut, its statistics not those of the start."""
    description = Description(
        architecture=architecture,
        arguments={"width": 4},
        class_names=NAMES,
        image_shape=SHAPE,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    model = build_network(description, seed=seed).train()
    for _ in range(30):
        model(pictures(64, 5).images.float() / 255)
    return model.eval()


def without_plug(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state as it was before the plug came."""
    return {name.replace(".inner", ""): value for name, value in state.items() if ".plug." not in name}


def plug_of(model: Network, place: str = PLACE) -> nn.Module:
    return model.body.get_submodule(f"{place}.plug")


# ---- the parts of the loss


def test_the_second_choice_is_never_the_true_class_however_small_the_logits() -> None:
    """The published code masks by a logit of -10, and so finds the true class where all others are below that."""
    logits = torch.tensor([[-11.0, -30.0, -20.0], [5.0, 9.0, 7.0], [5.0, 9.0, 7.0]])
    assert second_choice(logits, torch.tensor([0, 1, 0])).tolist() == [2, 2, 1]


def test_lowered_terms_equal_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels, guesses = torch.randint(0, 5, (2, 60), generator=generator)
    other = guess = 0.0
    for i in range(60):
        p = logits[i].softmax(0).tolist()
        rest = [value for label, value in enumerate(p) if label != int(labels[i])]
        other -= math.log(1.0001 - max(rest)) / 60
        guess -= math.log(1.0001 - p[int(guesses[i])]) / 60
    assert [float(term) for term in lowered(logits, labels, guesses)] == pytest.approx([other, guess], rel=1e-9)


def test_lowered_terms_and_their_gradients_are_finite_at_certainty() -> None:
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]], requires_grad=True)
    other, guess = lowered(logits, torch.tensor([1, 1]), torch.tensor([0, 0]))
    (other + guess).backward()
    assert float(other.detach()) == pytest.approx(-math.log(1e-4) / 2, rel=0.01)
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_projection_scales_each_image_by_itself_and_leaves_what_is_within() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0.0, 1e-3, 0.1, 1.0, 10.0])
    delta = torch.randn(5, 3, 4, 4, generator=generator) * sizes.view(-1, 1, 1, 1)
    kept = projected(delta, 3.0, "L2")
    for before, after in zip(delta, kept):
        norm = float(before.norm())
        assert float(after.norm()) <= 3.0 * (1 + 1e-6)
        torch.testing.assert_close(after, before * min(1.0, 3.0 / norm) if norm else before)
    assert torch.equal(kept[:3], delta[:3])
    assert float(projected(delta, 0.2, "Linf").abs().max()) == pytest.approx(0.2)
    assert torch.equal(projected(delta, 0.2, "Linf")[:2], delta[:2])


# ---- the search


class Scene:
    """A suspect with a plug, a batch, and NPD's hook, in double precision so that no sign is by chance."""

    def __init__(self, count: int = 48, **options: Any) -> None:
        self.options = NPD(**options)
        self.clean = pictures(count, 77)
        self.model = copy.deepcopy(planted(1).suspect).eval()
        plug = insert_plug(self.model, Edit(kind="convbn", before=PLACE))
        self.model.double().requires_grad_(False)
        plug.requires_grad_(True)
        with torch.no_grad():
            for parameter in plug.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        self.hook = _Polarizing(self.options, Frozen(point=PLACE, cut=None, features=None))
        self.hook.begin(self.model, Recipe(), runtime())
        self.batch = Batch(images=self.clean.images.double() / 255, targets=self.clean.labels, rows=torch.arange(count))
        with torch.no_grad():
            self.guesses = second_choice(self.model(self.batch.images), self.batch.targets)


def searched_plainly(scene: Scene) -> tuple[Tensor, list[float]]:
    """Do the published search: image by image, and one more pass a step to see how far it is.

    Returns:
        The adversarial images, and the share that is taken for the guess after each step.
    """
    o, x = scene.options, scene.batch.images
    delta, shares = torch.full_like(x, o.bound if o.norm == "Linf" else 0.0), []
    for _ in range(o.steps):
        for i in range(len(x)):
            d = delta[i : i + 1].clone().requires_grad_(True)
            loss = F.cross_entropy(scene.model((x[i : i + 1] + d).clamp(0, 1)), scene.guesses[i : i + 1])
            (gradient,) = torch.autograd.grad(loss, d)
            moved = delta[i] - o.step_size * (gradient[0].sign() if o.sign else gradient[0] / len(x))
            if o.norm == "Linf":
                delta[i] = moved.clamp(-o.bound, o.bound)
            else:
                norm = float(moved.square().sum().sqrt())
                delta[i] = moved * o.bound / norm if norm > o.bound else moved
        with torch.no_grad():
            answers = scene.model((x + delta).clamp(0, 1)).argmax(1)
        shares.append(float((answers == scene.guesses).float().mean()))
        if shares[-1] > 0.6:
            break
    return (x + delta).clamp(0, 1), shares


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"bound": 0.3, "step_size": 0.01, "steps": 3}, 3),
        ({"bound": 2.0, "step_size": 0.02, "steps": 12}, None),
        ({"norm": "Linf", "bound": 0.02, "step_size": 0.044, "steps": 4}, 4),
        ({"sign": False, "bound": 0.2, "step_size": 20.0, "steps": 3}, 3),
    ],
    ids=str,
)
def test_the_search_equals_a_loop_over_images(options: dict[str, Any], steps: int | None) -> None:
    scene = Scene(**options)
    expected, shares = searched_plainly(scene)
    if steps is None:
        assert 1 < len(shares) < 12, "the search ends in between, or this test shows nothing"
    else:
        assert len(shares) == steps, "the search runs to its end"
    found, features = scene.hook.search(scene.batch.images, scene.guesses)
    # Logits are taken as float32, so another machine may round a gradient of nearly zero to another sign.
    same = ((found - expected).abs() < 1e-6).flatten(1).all(1)
    assert int(same.sum()) >= 46
    assert torch.equal(features, found), "the network is not cut, so its images are the features"


class Scripted(nn.Module):
    """Takes so many of five images for class 1 in each of its passes."""

    def __init__(self, *counts: int) -> None:
        super().__init__()
        self.counts = list(counts)

    def forward(self, images: Tensor) -> Tensor:
        answers = (torch.arange(5) < self.counts.pop(0)).long()
        return F.one_hot(answers, 2).float() + 0.1 * images.flatten(1)[:, :2]


@pytest.mark.parametrize(
    ("counts", "left"),
    [((5, 4, 0, 0), 2), ((0, 3, 4, 0), 1), ((0, 3, 3, 0), 1), ((5, 5, 5, 5), 2)],
    ids=["4 of 5 after the first step", "3 of 5, then 4", "3 of 5 is not more than 60 %", "before the first step"],
)
def test_the_search_ends_when_more_than_60_percent_are_taken_for_their_guess(
    counts: tuple[int, ...], left: int
) -> None:
    scene = Scene(steps=3)
    scene.hook.head = head = Scripted(*counts)
    scene.hook.search(torch.full((5, *SHAPE), 0.5), torch.ones(5, dtype=torch.long))
    assert len(head.counts) == left


@pytest.mark.parametrize(("bound", "step_size"), [(3.0, 0.1), (0.5, 0.1), (0.2, 5.0)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_changes_stay_within_the_bound_and_images_within_their_range(
    bound: float, step_size: float, steps: int
) -> None:
    scene = Scene(bound=bound, step_size=step_size, steps=steps)
    found, _ = scene.hook.search(scene.batch.images, scene.guesses)
    norms = (found - scene.batch.images).flatten(1).norm(dim=1)
    assert float(norms.max()) <= bound * (1 + 1e-6)
    assert float(norms.min()) > 0
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_without_steps_the_images_are_where_the_search_starts() -> None:
    scene = Scene(steps=0)
    assert torch.equal(scene.hook.search(scene.batch.images, scene.guesses)[0], scene.batch.images)
    scene = Scene(steps=0, norm="Linf", bound=0.2)
    expected = (scene.batch.images + 0.2).clamp(0, 1)
    assert torch.equal(scene.hook.search(scene.batch.images, scene.guesses)[0], expected)


def test_along_the_gradient_itself_the_step_is_that_of_the_mean_over_the_batch() -> None:
    scene = Scene(sign=False, steps=1, step_size=1e-3)
    images = scene.batch.images.clone().requires_grad_(True)
    loss = F.cross_entropy(scene.model(images), scene.guesses)
    (gradient,) = torch.autograd.grad(loss, images)
    inside = (scene.batch.images > 0) & (scene.batch.images < 1)
    found, _ = scene.hook.search(scene.batch.images, scene.guesses)
    moved = (found - scene.batch.images)[inside]
    assert float(moved.abs().max()) > 0
    torch.testing.assert_close(moved, -1e-3 * gradient[inside], rtol=1e-3, atol=1e-9)


def test_the_search_computes_no_gradient_of_weights() -> None:
    scene = Scene()
    scene.hook.search(scene.batch.images, scene.guesses)
    assert all(parameter.grad is None for parameter in scene.model.parameters())


# ---- the two stages


@pytest.mark.parametrize("weights", [(1.0, 0.4, 0.4, 0.4), (1.0, 0.0, 0.0, 0.0), (0.0, 0.3, 2.0, 0.7)])
def test_the_loss_and_its_gradient_equal_the_specification(weights: tuple[float, ...]) -> None:
    names = ("clean_weight", "keep_weight", "other_weight", "guess_weight")
    scene = Scene(bound=1.0, step_size=0.05, **dict(zip(names, weights)))
    x, y = scene.batch.images, scene.batch.targets
    changed, _ = scene.hook.search(x, scene.guesses)
    clean, logits = scene.model(x), scene.model(changed)
    terms = [F.cross_entropy(clean, y), F.cross_entropy(logits, clean.argmax(1)), torch.zeros(()), torch.zeros(())]
    wrong = 0
    for i in range(len(x)):
        p = logits[i].softmax(0)
        first, second = p.argsort(descending=True)[:2]
        wrong += int(clean[i].argmax() != y[i])
        terms[2] = terms[2] - torch.log(1.0001 - p[second if first == y[i] else first]) / len(x)
        terms[3] = terms[3] - torch.log(1.0001 - p[scene.guesses[i]]) / len(x)
    expected = sum(weight * term for weight, term in zip(weights, terms))
    assert isinstance(expected, Tensor)
    parameters = list(plug_of(scene.model).parameters())
    loss = scene.hook.loss(scene.model, scene.batch)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for found, gradient in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)


def test_in_training_mode_each_pass_has_its_own_statistics_and_clean_images_move_the_running_ones() -> None:
    scene = Scene(train_mode=True, bound=1.0, step_size=0.05)
    x, y = scene.batch.images, scene.batch.targets
    answers = scene.model(x).argmax(1)
    changed, _ = scene.hook.search(x, scene.guesses)
    reference = copy.deepcopy(scene.model)
    plug_of(reference).train()
    first = reference(x)
    moved = state_of(plug_of(reference))
    logits = reference(changed)
    other, guess = lowered(logits, y, scene.guesses)
    expected = F.cross_entropy(first, y) + 0.4 * (F.cross_entropy(logits, answers) + other + guess)
    assert not same_state(moved, state_of(plug_of(scene.model)))
    loss = scene.hook.loss(scene.model, scene.batch)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, value in state_of(plug_of(scene.model)).items():
        torch.testing.assert_close(value, moved[name], msg=name)
    assert not any(module.training for module in plug_of(scene.model).modules())
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in plug_of(scene.model).parameters())


def test_a_single_image_has_no_statistics_of_its_own() -> None:
    scene = Scene(count=1, train_mode=True)
    before = state_of(plug_of(scene.model))
    assert bool(scene.hook.loss(scene.model, scene.batch).isfinite())
    assert same_state(before, state_of(plug_of(scene.model)))


@pytest.mark.parametrize("train_mode", [False, True])
def test_a_repair_in_training_mode_moves_the_running_statistics_in_the_main_stage(train_mode: bool) -> None:
    plug = plug_of(repair(planted(1).suspect, warm_up_epochs=0, epochs=2, train_mode=train_mode))
    assert bool((state_of(plug)["layers.1.running_mean"] != 0).any()) == train_mode


def test_wrong_answers_are_kept_on_adversarial_images_as_in_the_published_code() -> None:
    """Lambda_2 keeps the model's own answer, not the label."""
    scene = Scene(steps=0, clean_weight=0.0, keep_weight=1.0, other_weight=0.0, guess_weight=0.0)
    labels = (scene.batch.targets + 1) % len(NAMES)
    batch = Batch(images=scene.batch.images, targets=labels, rows=scene.batch.rows)
    answers = scene.model(batch.images).argmax(1)
    expected = F.cross_entropy(scene.model(batch.images), answers)
    assert float(scene.hook.loss(scene.model, batch).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def repair(suspect: Network, seed: int = 0, data: ImageSet | None = None, **options: Any) -> Network:
    method = NPD(**{"epochs": 1, "warm_up_epochs": 1, "batch_size": 12, **options})
    return method.purify(suspect, DefenderData(clean=data or pictures(24, 3)), runtime(seed))[0]


def test_the_warm_up_equals_a_plain_loop_on_statistics_of_the_batch() -> None:
    suspect, clean = planted(1).suspect, pictures(48, 3)
    model = copy.deepcopy(suspect)
    plug = insert_plug(model, Edit(kind="convbn", before=PLACE))
    model.requires_grad_(False).eval()
    plug.requires_grad_(True).train()
    optimizer = torch.optim.SGD(plug.parameters(), 1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(clean.images.float() / 255), clean.labels).backward()
        optimizer.step()
    # A rate of nearly nothing shows the warm-up alone.
    found = repair(suspect, data=clean, warm_up_epochs=3, batch_size=48, learning_rate=1e-30)
    for name, value in state_of(plug).items():
        torch.testing.assert_close(state_of(plug_of(found))[name], value, atol=1e-6, rtol=1e-5)


def test_running_statistics_of_the_plug_move_in_the_warm_up_only() -> None:
    suspect = planted(1).suspect
    states = [
        state_of(plug_of(repair(suspect, warm_up_epochs=warm, epochs=epochs)))
        for warm, epochs in ((0, 2), (1, 1), (1, 3))
    ]
    none, short, long = [state["layers.1.running_mean"] for state in states]
    assert float(none.abs().max()) == 0
    assert float(short.abs().max()) > 0
    assert torch.equal(short, long)
    assert not torch.equal(states[1]["layers.0.weight"], states[2]["layers.0.weight"])


@pytest.fixture
def steps_taken() -> Iterator[list[dict[str, Any]]]:
    """Kind and options of the optimiser at every step of the test."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    taken: list[dict[str, Any]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        (group,) = optimizer.param_groups
        taken.append({**group, "kind": type(optimizer).__name__, "params": len(group["params"])})

    handle = register_optimizer_step_pre_hook(note)
    yield taken
    handle.remove()


def test_the_optimisers_are_those_of_the_paper_and_train_the_plug_alone(steps_taken: list[dict[str, Any]]) -> None:
    repair(planted(1).suspect, warm_up_epochs=2, epochs=3)
    seen = [(t["kind"], t["lr"], t["momentum"], t["weight_decay"], t["nesterov"], t["params"]) for t in steps_taken]
    assert seen == [("SGD", 1e-4, 0.0, 0.0, False, 3)] * 4 + [("SGD", 0.01, 0.9, 5e-4, False, 3)] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_plug_is_as_it_was_bit_by_bit(kind: str) -> None:
    suspect = planted(1).suspect
    before, requires = state_of(suspect), [p.requires_grad for p in suspect.parameters()]
    repaired = repair(suspect, epochs=2, plug=kind)
    assert same_state(before, without_plug(state_of(repaired)))
    assert same_state(before, state_of(suspect))
    assert requires == [p.requires_grad for p in suspect.parameters()]
    assert suspect.description.edits == ()
    fresh = insert_plug(copy.deepcopy(suspect), repaired.description.edits[0])
    for (name, value), start in zip(plug_of(repaired).named_parameters(), fresh.parameters()):
        assert not torch.equal(value, start), name
        assert value.requires_grad
    assert not any(module.training for module in repaired.modules())


def test_the_plug_starts_as_the_identity() -> None:
    model = planted(1).suspect
    images = pictures(24, 3).images.float() / 255
    edited = copy.deepcopy(model)
    insert_plug(edited, Edit(kind="convbn", before=PLACE))
    with torch.no_grad():
        torch.testing.assert_close(edited(images), model(images), rtol=1e-4, atol=1e-4)


def test_history_has_the_loss_of_the_main_stage_and_says_where_the_plug_is() -> None:
    method = NPD(epochs=3, warm_up_epochs=2, batch_size=12)
    _, history = method.purify(planted(1).suspect, DefenderData(clean=pictures(24, 3)), runtime())
    assert (history.epochs, len(history.loss)) == (3, 3)
    assert history.notes == ("The model has a new layer, a plug of the kind convbn, before 3; all else is as it was.",)


def test_all_epochs_see_whole_images() -> None:
    assert sides_seen(NPD(epochs=2)) == {SHAPE}


# ---- the saved model


@pytest.mark.parametrize("options", [{}, {"plug": "mlp"}, {"before": "block3.layer.1", "residual": True}], ids=str)
def test_the_saved_model_has_the_plug(tmp_path: Path, options: dict[str, Any]) -> None:
    """The published code saves the backdoored model as its result."""
    suspect = staged()
    repaired = repair(suspect, epochs=3, learning_rate=0.1, **options)
    save_model(tmp_path / "m", repaired, provenance={})
    loaded = load_model(tmp_path / "m").network
    images = pictures(16, 9).images.float() / 255
    with torch.no_grad():
        # Not bit by bit: the repaired one lies in memory channels last, and adds up in another order.
        torch.testing.assert_close(loaded(images), repaired(images), rtol=0, atol=1e-6)
        assert not torch.allclose(loaded(images), suspect(images), atol=1e-4)
    assert same_state(state_of(loaded), state_of(repaired))
    assert loaded.description.edits == repaired.description.edits


def test_a_repaired_model_can_be_repaired_again(tmp_path: Path) -> None:
    twice = repair(repair(staged()))
    assert [edit.before for edit in twice.description.edits] == ["block3.layer.1.conv1", "block3.layer.1.conv1.inner"]
    save_model(tmp_path / "m", twice, provenance={})
    images = pictures(16, 9).images.float() / 255
    loaded = load_model(tmp_path / "m").network
    assert same_state(state_of(loaded), state_of(twice))
    torch.testing.assert_close(loaded(images), twice(images), rtol=0, atol=1e-6)


# ---- where the plug goes


@pytest.mark.parametrize(
    ("architecture", "place"),
    [
        ("PreActResNet18", "layer4.1.conv1"),
        ("ResNet18", "layer4.1.conv1"),
        ("VGG19BN", "features.46"),
        ("WRN16x1", "block3.layer.1.conv1"),
    ],
)
def test_the_default_place_is_the_last_but_one_large_convolution(architecture: str, place: str) -> None:
    description = Description(
        architecture=architecture,
        arguments={"width": 2},
        class_names=NAMES,
        image_shape=(3, 32, 32),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    model = build_network(description, seed=0)
    assert default_place(model, runtime()) == place
    assert hooks_on(model) == 0


class Backwards(nn.Module):
    """Runs its convolutions in another order than it names them in."""

    def __init__(self) -> None:
        super().__init__()
        self.third, self.second, self.first = (nn.Conv2d(3, 3, 3, 1, 1) for _ in range(3))
        self.one = nn.Conv2d(3, 3, 1)
        self.idle = nn.Linear(3, 3)
        self.out = nn.Linear(3, len(NAMES))

    def forward(self, images: Tensor) -> Tensor:
        features = self.one(self.third(self.one(self.second(self.first(images)))))
        logits: Tensor = self.out(features.mean((2, 3)))
        return logits


def own(body: nn.Module) -> Network:
    return Network(body, network(0).description).eval()


def test_the_order_is_that_of_the_run_and_1_x_1_convolutions_do_not_count() -> None:
    assert default_place(own(Backwards()), runtime()) == "second"


@pytest.mark.parametrize(
    ("body", "options", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(432, 8)), {}, "of which this network has 0; name the module"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8)),
            {},
            "of which this network has 1; name the module",
        ),
        (Backwards(), {"before": "fourth"}, "Backwards has no module 'fourth'; did you mean"),
        (Backwards(), {"before": "idle"}, "no features come into 'idle'"),
        (Backwards(), {"before": "one"}, None),
        (Backwards(), {"before": "out", "plug": "mlp"}, None),
        (nn.Sequential(nn.Flatten(), nn.Linear(432, 8)), {"before": "1"}, None),
    ],
)
def test_a_place_that_cannot_be_is_refused_and_others_are_taken(
    body: nn.Module, options: dict[str, Any], words: str | None
) -> None:
    if words is None:
        repaired = repair(own(body), **options)
        assert repaired.description.edits[0].before == options["before"]
        return
    model = own(body)
    with pytest.raises(InputError, match=words):
        repair(model, **options)
    assert hooks_on(model) == 0


@pytest.mark.parametrize(("before", "filtered"), [("layer4.1.conv1", False), ("layer4.1", True)])
def test_before_a_whole_block_the_shortcut_is_filtered_too(before: str, filtered: bool) -> None:
    """Before the block's first convolution, as in the paper, the shortcut carries the features past the plug."""
    model = staged("PreActResNet18")
    repaired = repair(model, before=before)
    assert same_state(state_of(model), without_plug(state_of(repaired)))
    images = pictures(16, 9).images.float() / 255
    with torch.no_grad():
        for parameter in plug_of(repaired, before).parameters():
            parameter.zero_()
        nothing_left = float(repaired(images).std(0).max()) < 1e-6
    assert nothing_left == filtered


# ---- the features that are kept


@pytest.mark.parametrize(("before", "cut"), [("", "block3.layer.1"), ("block2", "block2.layer.0"), ("fc", "fc")])
def test_kept_features_lead_to_the_same_weights_as_none(before: str, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Frozen] = []
    original = Frozen.of

    def watched(*arguments: Any) -> Frozen:
        kept.append(original(*arguments))
        return kept[-1]

    monkeypatch.setattr(Frozen, "of", watched)
    suspect = staged()
    with_cache = repair(suspect, epochs=3, before=before)
    monkeypatch.setattr(frozen, "CACHE_BYTES", 0)
    without = repair(suspect, epochs=3, before=before)
    assert [one.cut for one in kept] == [cut, cut]
    assert kept[0].features is not None
    assert len(kept[0].features) == 24
    assert kept[1].features is None
    monkeypatch.undo()
    monkeypatch.setattr(Frozen, "of", lambda model, point, *_: Frozen(point=point, cut=None, features=None))
    uncut = repair(suspect, epochs=3, before=before)
    for name, value in state_of(with_cache).items():
        torch.testing.assert_close(state_of(without)[name], value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(state_of(uncut)[name], value, atol=1e-5, rtol=1e-4)


def test_clean_images_pass_the_frozen_layers_once() -> None:
    model = staged()
    images: list[int] = []
    model.body.get_submodule("conv1").register_forward_pre_hook(lambda module, inputs: images.append(len(inputs[0])))
    repair(model, warm_up_epochs=3, epochs=2, steps=1)
    # One image to find the place, one for its size, one at the start of each stage; all clean images once, and once to
    # see whether the model knows them; and in each step of the main stage one pass to search and one for what it found.
    assert sorted(images) == [1] * 4 + [12] * 8 + [24] * 2


# ---- behaviour


def test_in_mixed_precision_the_loss_reaches_every_weight_of_the_plug() -> None:
    mixed = Runtime(device="cpu", precision="bf16", threads=1)
    for stage, method in ((_WarmUp, NPD()), (_Polarizing, NPD()), (_Polarizing, NPD(train_mode=True))):
        model, clean = staged(), pictures(24, 3)
        place = "block3.layer.1.conv1"
        model.requires_grad_(False)
        plug = insert_plug(model, Edit(kind="convbn", before=place))
        hook = stage(method, Frozen.of(model, place, clean, mixed))
        hook.begin(model, Recipe(), mixed)
        with mixed.autocast():
            batch = Batch(images=clean.images.float() / 255, targets=clean.labels, rows=torch.arange(24))
            loss = hook.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in plug.parameters())


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_a_planted_backdoor_is_filtered_and_accuracy_kept(seed: int) -> None:
    models = planted(seed)
    method = NPD(epochs=20, batch_size=32, learning_rate=0.05)
    repaired, _ = method.purify(models.suspect, models.data, runtime(seed))
    before, after, nothing = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, Nothing().purify(models.suspect, models.data, runtime(seed))[0])
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.3
    assert after.acc.value > 0.9
    assert defense_effectiveness(before, nothing) == 0.5
    twin, _ = method.purify(models.twin, models.data, runtime(seed))
    # Five times the method's rate, in a network of few channels: that costs the twin some points.
    assert evaluate(twin, models.test, runtime()).acc.value > 0.85


@pytest.mark.parametrize("after", [3, 7], ids=["in the warm-up", "in the main stage"])
def test_an_interrupted_repair_goes_on_as_if_nothing_had_happened(tmp_path: Path, after: int) -> None:
    suspect, path = staged(), tmp_path / "resume.pt"
    data, method = DefenderData(clean=pictures(24, 3)), NPD(epochs=4, warm_up_epochs=2, batch_size=12)
    # Each stage has a bar of its own; the warm-up has only 4 steps.
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=Stops(after))
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, stopping, resume=path)
    assert path.exists() == (after > 4)
    again, history = method.purify(suspect, data, runtime(), resume=path)
    whole, expected = method.purify(suspect, data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected
    assert again.description == whole.description


def test_the_seed_decides() -> None:
    suspect = planted(1).suspect
    assert same_state(state_of(repair(suspect, 0)), state_of(repair(suspect, 0)))
    assert not same_state(state_of(repair(suspect, 0)), state_of(repair(suspect, 1)))


def test_two_classes_and_batches_of_one_image_are_enough() -> None:
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    description = Description(
        architecture="two",
        arguments={},
        class_names=("a", "b"),
        image_shape=SHAPE,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    images = pictures(6, 3)
    data = ImageSet(images=images.images, labels=images.labels % 2, class_names=("a", "b"))
    repaired = repair(Network(body, description), data=data, batch_size=1, before="4")
    assert all(bool(value.isfinite().all()) for value in state_of(repaired).values())


def test_dead_features_lead_to_no_nan() -> None:
    suspect = copy.deepcopy(planted(1).suspect)
    with torch.no_grad():
        suspect.body.get_parameter("0.weight").zero_()
    repaired = repair(suspect, warm_up_epochs=5)
    assert all(bool(value.isfinite().all()) for value in state_of(repaired).values())


def test_defaults_are_those_of_the_paper() -> None:
    method = NPD()
    assert (method.epochs, method.batch_size, method.learning_rate, method.warm_up_epochs) == (50, 128, 0.01, 5)
    assert (method.norm, method.bound, method.steps, method.step_size) == ("L2", 3.0, 2, 0.1)
    weights = (method.clean_weight, method.keep_weight, method.other_weight, method.guess_weight)
    assert weights == (1.0, 0.4, 0.4, 0.4)
    assert (method.plug, method.residual, method.before) == ("convbn", False, "")
    assert (method.sign, method.train_mode) == (True, False)


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"NPD needs clean samples.*--clean"):
        NPD().purify(network(0), DefenderData(), runtime())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bound": 0.0}, "^NPD: .* found 0.0"),
        ({"step_size": math.nan}, "^NPD: .* found .* nan"),
        ({"steps": -1}, "^NPD: .* found -1"),
        ({"warm_up_epochs": -1}, "^NPD: .* found 2 and -1"),
        ({"keep_weight": math.inf}, "^NPD: the four weights .* found"),
        ({"guess_weight": -0.1}, "^NPD: the four weights .* found"),
        ({"norm": "L1"}, "^NPD: the norm is L2 or Linf, found 'L1'"),
        ({"norm": "Linf"}, "^NPD: with the norm Linf the bound is 1 at most .* found 3.0"),
        ({"plug": "lightconv"}, "no plug 'lightconv'"),
        ({"before": "a" * 257}, "1 to 256 characters"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        NPD(**options)
