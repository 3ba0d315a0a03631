"""Of many classes the easiest to reach are searched, at a cost that grows slower than their number."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.planted import CLASSES, network, pictures, planted, runtime
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.scan import MESA, NeuralCleanse, Scanner, UniversalPerturbations, screening
from unbackdoor.scan.neural_cleanse import _Search
from unbackdoor.scan.screening import for_all, worth_searching
from unbackdoor.scan.universal import log_odds


def test_where_there_are_few_classes_all_are_searched() -> None:
    model, clean = network(0).eval(), pictures(40, 5)
    limited = replace(runtime(), budget=1.0)
    classes, left = worth_searching(model, clean, CLASSES, limited)
    assert classes.tolist() == list(range(CLASSES))
    assert left == limited


def test_what_the_choice_of_classes_takes_is_no_longer_there_for_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = network(0).eval(), pictures(40, 5)
    times = iter([10.0, 40.0, 50.0, 200.0])
    monkeypatch.setattr(screening, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    for expected in (0.5, 1e-3):
        _, left = worth_searching(model, clean, CLASSES // 2, replace(runtime(), budget=1.0))
        assert left.budget == pytest.approx(expected)


@pytest.mark.parametrize("seed", [1, 2, 4, 8])
def test_a_planted_target_is_among_half_of_the_classes_that_are_searched(seed: int) -> None:
    models = planted(seed)
    found, left = worth_searching(models.suspect.eval(), models.data.need_clean("test"), CLASSES // 2, runtime())
    assert left.budget is None
    assert len(found) == CLASSES // 2
    assert found.tolist() == sorted(set(found.tolist()))
    assert models.target in found.tolist()


def test_log_odds_are_those_of_a_linear_model_by_hand() -> None:
    linear = nn.Linear(12, 3)
    images = torch.tensor([[100] * 12, [200] * 12, [50] * 12], dtype=torch.uint8).view(3, 3, 2, 2)
    clean = ImageSet(images=images, labels=torch.tensor([0, 1, 2]), class_names=("a", "b", "c"))
    changes = torch.full((2, 3, 2, 2), 0.1)
    found = log_odds(nn.Sequential(nn.Flatten(), linear), clean, torch.tensor([2, 0]), changes, runtime())
    for number, value in zip((2, 0), found):
        others = (images[clean.labels != number].float() / 255 + 0.1).clamp(0, 1).flatten(1)
        probabilities = linear(others).softmax(1)[:, number]
        torch.testing.assert_close(value, (probabilities / (1 - probabilities)).log().mean(), rtol=1e-4, atol=1e-5)


def test_a_class_without_images_of_others_has_even_odds() -> None:
    images, labels = torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
    clean = ImageSet(images=images, labels=labels, class_names=("a", "b"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert log_odds(model, clean, torch.tensor([0]), torch.zeros(1, 3, 2, 2), runtime()).tolist() == [0.0]


def test_a_class_that_was_not_searched_is_the_least_unusual() -> None:
    assert for_all(torch.tensor([1.0, -2.0]), torch.tensor([3, 1]), 5).tolist() == [-2.0, -2.0, -2.0, 1.0, -2.0]


def many(classes: int) -> tuple[nn.Module, DefenderData]:
    """Return an untrained network of so many classes, and images for it."""
    model = network(0)
    model.body[-1] = nn.Linear(96, classes)
    names = tuple(map(str, range(classes)))
    model.description = type(model.description)(**{**vars(model.description), "class_names": names})
    clean = pictures(60, 5)
    return model, DefenderData(
        clean=ImageSet(images=clean.images, labels=torch.arange(60) % classes, class_names=names)
    )


@pytest.mark.parametrize(
    ("scanner", "few", "most"),
    [
        (UniversalPerturbations(steps=40, batch_size=16, most_classes=5), 5, 4.0),
        (NeuralCleanse(rounds=20, steps=2, batch_size=16, most_classes=5), 5, 4.0),
        (MESA(finalists=0, most_classes=5), 5, 4.0),
        (UniversalPerturbations(steps=40), 16, 2.0),
        (NeuralCleanse(rounds=10, steps=5), 16, 2.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Scanner) else str(value),
)
def test_ten_times_the_classes_cost_much_less_than_ten_times_as_much(scanner: Scanner, few: int, most: float) -> None:
    counts = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        counts[-1] += len(inputs[0])

    for classes in (few, 10 * few):
        model, data = many(classes)
        counts.append(0)
        # The scanner's copy has the hook too.
        model.body[0].register_forward_hook(count)
        found = scanner.scan(model, data, runtime())  # type: ignore[arg-type]
        assert len(found.anomaly) == classes
        assert found.evidence["searched"] == few
    assert counts[1] < most * counts[0]


def test_neural_cleanse_inverts_triggers_for_the_chosen_classes_only() -> None:
    models = planted(1)
    options = NeuralCleanse(rounds=6, steps=2, batch_size=8, most_classes=3)
    found = options.scan(models.suspect, models.data, runtime())
    masks = [one.mask for one in found.reconstructions]
    # All classes start from the same mask, and those that are not searched stay there.
    alike = [sum(torch.equal(mask, other) for other in masks) for mask in masks]
    assert sorted(alike) == [1] * 3 + [CLASSES - 3] * (CLASSES - 3)
    assert alike[models.target] == 1
    for number in range(CLASSES):
        if alike[number] > 1:
            assert found.reconstructions[number].success == 0
            assert float(found.anomaly[number]) == float(found.anomaly.min())


@pytest.mark.parametrize("most", [0, 2])
def test_too_few_classes_to_compare_are_refused(most: int) -> None:
    for scanner in (NeuralCleanse, UniversalPerturbations):
        with pytest.raises(InputError, match="3"):
            scanner(most_classes=most)


def test_neural_cleanse_keeps_no_state_of_classes_that_it_does_not_search() -> None:
    model, rows = network(0).eval().requires_grad_(False), torch.tensor([2, 5])
    search = _Search(NeuralCleanse(), model, pictures(40, 5), rows, runtime())
    assert {len(one) for one in (search.mask_raw, search.pattern_raw, search.best_mask, search.best_pattern)} == {2}
    search.step(search.active(), torch.arange(20))
    search.reconsider(torch.arange(2), torch.tensor([1.0, 0.0]))
    masks, patterns, success = search.best()
    assert success.tolist() == [0.0, 0.0, 1.0] + [0.0] * (CLASSES - 3)
    for number in range(CLASSES):
        assert torch.equal(masks[number], masks[0]) is (number not in (2, 5))
        assert torch.equal(patterns[number], patterns[0]) is (number not in (2, 5))
