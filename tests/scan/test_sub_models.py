"""Sub-models trained together are those trained one by one: a plain version takes the same steps, noise included."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.naive.mesa import SubModel
from tests.patched import SIZE, TARGET, patched
from tests.planted import CLASSES, SHAPE, network, pictures, runtime
from tests.scan.test_stacked import different, plain_generator, plain_statistics
from unbackdoor.scan.patches import answers_to, draw_places, success
from unbackdoor.scan.sub_models import Schedule, SubModels, train_sub_models
from unbackdoor.training import Runtime

BETAS = (0.9, 0.5)
SCHEDULE = Schedule(
    betas=BETAS,
    shape=(3, SIZE, SIZE),
    steps=5,
    batch_size=12,
    learning_rate=1e-2,
    alpha=0.1,
    noise=0.1,
    hidden=16,
)


def stack(*targets: int, schedule: Schedule = SCHEDULE) -> SubModels:
    model = network(0).eval().requires_grad_(False)
    return SubModels(model, pictures(40, 5), targets, schedule, runtime())


def test_stacked_training_is_separate_training() -> None:
    together = stack(1, 6)
    different(together.generators)
    different(together.statistics)
    alone = [
        SubModel(
            model=together.model,
            generator=plain_generator(together.generators, row),
            statistics=plain_statistics(together.statistics, row),
            target=(1, 1, 6, 6)[row],
            beta=(0.9, 0.5, 0.9, 0.5)[row],
            alpha=0.1,
            learning_rate=1e-2,
        )
        for row in range(4)
    ]
    before = [plain_generator(together.generators, row).state_dict() for row in range(4)]
    for step in range(4):
        images, _, first, second = together.drawn()
        place = (step, 2 * step)
        together.step(images, torch.tensor([place] * 12), first, second)
        for one in alone:
            drawn = [(draw.one, draw.other, draw.noise) for draw in (first, second)]
            one.step(images.float() / 255, place, drawn[0], drawn[1])
    for row, one in enumerate(alone):
        for name, value in plain_generator(together.generators, row).named_parameters():
            # Biases before a normalisation have no effect, and follow rounding.
            if name not in ("fc1.bias", "fc2.bias", "fc3.bias"):
                torch.testing.assert_close(value, one.generator.get_parameter(name), rtol=2e-3, atol=2e-3)
                assert not torch.allclose(value, before[row][name], atol=1e-2)
        for name, value in plain_statistics(together.statistics, row).named_parameters():
            # So does a shift of all values of T.
            if name != "fc3.bias":
                torch.testing.assert_close(value, one.statistics.get_parameter(name), rtol=2e-3, atol=2e-3)


def test_a_row_does_not_see_the_others() -> None:
    many, one = train(1, 6, 3), train(6)
    triggers = [made.sample(10, draws(), of=1) for made in (many[1], one[0])]
    torch.testing.assert_close(*triggers, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(many[1].information, one[0].information, rtol=1e-2, atol=1e-4)


def train(*targets: int, steps: int = 5, seed: int = 0) -> list:
    model = network(0).eval().requires_grad_(False)
    schedule = Schedule(**{**vars(SCHEDULE), "steps": steps})
    return train_sub_models(model, pictures(40, 5), targets, schedule, runtime(seed))[0]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_seed_decides() -> None:
    def triggers(seed: int) -> Tensor:
        return train(2, seed=seed)[0].sample(10, draws())

    assert torch.equal(triggers(0), triggers(0))
    assert not torch.equal(triggers(0), triggers(1))


def test_above_beta_the_score_pushes_no_further_and_below_it_does() -> None:
    """The gradient is that of -min(p, beta): with a beta of nearly 0 nothing is left of it."""
    gradients = []
    for beta in (1e-9, 1 - 1e-9):
        one = stack(1, schedule=Schedule(**{**vars(SCHEDULE), "betas": (beta,)}))
        images, places, first, _ = one.drawn()
        gradients.append(one._lead(images, places, one.generators(first.one)))
    assert gradients[0].abs().max() == 0
    assert gradients[1].abs().amax((2, 3, 4)).min() > 0


def test_where_beta_is_reached_entropy_spreads_the_triggers() -> None:
    """A beta of nearly 0 is always reached. Without weight on the entropy the triggers stay as they start."""
    model, clean = network(0).eval().requires_grad_(False), pictures(40, 5)
    usual = {**vars(SCHEDULE), "betas": (1e-9,), "steps": 150, "batch_size": 32, "learning_rate": 2e-3, "hidden": 48}
    spread, information = [], []
    for alpha in (1.0, 0.0):
        (found,), _ = train_sub_models(model, clean, [1], Schedule(**{**usual, "alpha": alpha}), runtime())
        spread.append(float(found.sample(300, draws(1), of=0).std(0).mean()))
        information.append(float(found.information))
    assert spread[0] > 0.2 > 0.12 > spread[1]
    assert information[0] > 0.7 > 0.1 > information[1]


def test_triggers_of_a_backdoor_do_what_the_distribution_says() -> None:
    model, clean = patched(2.0).requires_grad_(False), pictures(200, 7)
    quick = {**vars(SCHEDULE), "steps": 200, "batch_size": 32, "learning_rate": 1e-3, "hidden": 48}
    (found,), steps = train_sub_models(model, clean, [TARGET], Schedule(**quick), runtime())
    assert steps == 200
    assert found.success.min() > 0.7
    for number in range(2):
        triggers = found.sample(200, draws(1), of=number)
        places = draw_places(200, SHAPE, SIZE, draws(2))
        answers = answers_to(model, clean.images, triggers[None], places, runtime())
        share = success(answers, torch.tensor([TARGET]), clean.labels)
        assert abs(float(share) - float(found.success[number])) < 0.1


def test_a_budget_shortens_the_training() -> None:
    counted = Runtime(device="cpu", precision="fp32", threads=1, budget=1e-5)
    model = network(0).eval().requires_grad_(False)
    schedule = Schedule(**{**vars(SCHEDULE), "steps": 10**6})
    (found,), steps = train_sub_models(model, pictures(40, 5), [0], schedule, counted)
    assert found.betas == BETAS
    assert 1 <= steps < 10**6
    assert CLASSES > 1
