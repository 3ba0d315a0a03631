"""BadNets stamps a white square in the bottom right corner of the drawn rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.planted import runtime
from unbackdoor.attacks import CLEAN, POISON, AllToAll, AllToOne, Attack, BadNets, FittedAttack
from unbackdoor.attacks.base import poison_rows
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError


def some(count: int = 200, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 5) -> ImageSet:
    """Return random images without white pixels."""
    images = torch.randint(0, 255, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = tuple(str(number) for number in range(classes))
    return ImageSet(images=images, labels=torch.arange(count) % classes, class_names=names)


def prepare(attack: Attack, train: ImageSet, seed: int = 0) -> FittedAttack:
    return attack.prepare(train, lambda: pytest.fail("no model is needed"), runtime(seed))


def test_pixels_29_to_31_of_a_32_pixel_image_turn_white_and_no_other_changes() -> None:
    train = some()
    fitted = prepare(BadNets(), train)
    for row in range(len(train)):
        before, after = train.images[row], fitted.train.images[row]
        if fitted.kinds[row] == POISON:
            assert bool((after[:, 29:32, 29:32] == 255).all())
            after = after.clone()
            after[:, 29:32, 29:32] = before[:, 29:32, 29:32]
        assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("shape", "size", "rows", "columns"),
    [
        ((3, 64, 64), 3, 6, 6),
        ((3, 16, 16), 4, 2, 2),
        ((1, 28, 28), 3, 3, 3),
        ((3, 32, 64), 3, 3, 6),
        ((3, 32, 32), 32, 32, 32),
    ],
)
def test_the_square_grows_with_the_image(shape: tuple[int, int, int], size: int, rows: int, columns: int) -> None:
    fitted = prepare(BadNets(size=size), some(20, shape))
    black = torch.zeros(1, *shape, dtype=torch.uint8)
    white = fitted.trigger.stamp(black)[0] == 255
    assert int(white.sum()) == shape[0] * rows * columns
    assert bool(white[:, -rows:, -columns:].all())


@pytest.mark.parametrize(("rate", "expected"), [(0.1, 20), (0.013, 3), (0.005, 1), (1.0, 200)])
def test_the_number_of_poisoned_rows_is_the_rate_of_all_rows(rate: float, expected: int) -> None:
    fitted = prepare(BadNets(poison_rate=rate), some())
    assert int((fitted.kinds == POISON).sum()) == expected
    assert int((fitted.kinds == CLEAN).sum()) == 200 - expected


def test_poisoned_rows_get_the_target_and_the_true_labels_are_kept() -> None:
    train = some()
    fitted = prepare(BadNets(target=3), train)
    poisoned = fitted.kinds == POISON
    assert set(fitted.train.labels[poisoned].tolist()) == {3}
    assert torch.equal(fitted.train.labels[~poisoned], train.labels[~poisoned])
    assert torch.equal(fitted.original_labels, train.labels)
    assert fitted.criterion == AllToOne(target=3)
    assert fitted.hook is None


def test_all_to_all_names_the_next_class_and_wraps() -> None:
    train = some()
    fitted = prepare(BadNets(labels="all-to-all", poison_rate=1.0), train)
    assert fitted.criterion == AllToAll(classes=5)
    assert fitted.train.labels.tolist() == [(label + 1) % 5 for label in train.labels.tolist()]
    assert fitted.train.labels[4] == 0


def test_poisoned_rows_come_from_all_classes_in_proportion() -> None:
    """The target class is included. 20 draws of 100 of 1000: chi-squared of the classes' counts, 4 degrees."""
    train = some(1000, (1, 4, 4))
    counts, rows = torch.zeros(5), torch.zeros(1000)
    for seed in range(20):
        poisoned = prepare(BadNets(target=2, size=8), train, seed).kinds == POISON
        counts += torch.bincount(train.labels[poisoned], minlength=5)
        rows += poisoned
    assert counts.sum() == 2000
    assert float(((counts - 400) ** 2 / 400).sum()) < 18.5  # 0.1 %
    # Every part of the data is drawn from: ten blocks of rows, 200 each expected.
    blocks = rows.view(10, 100).sum(1)
    assert float(((blocks - 200) ** 2 / 200).sum()) < 27.9


def test_the_seed_decides_the_rows() -> None:
    train = some()
    one, same, other = (prepare(BadNets(), train, seed).kinds for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_training_set_it_is_given_stays_as_it_is() -> None:
    train = some()
    before = train.digest()
    prepare(BadNets(poison_rate=1.0), train)
    assert train.digest() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 5}, "target class 5 is out of range.*0 to 4"),
        ({"target": -1}, "out of range"),
        ({"poison_rate": 0.0}, "poison rate"),
        ({"poison_rate": 1.01}, "poison rate"),
        ({"poison_rate": float("nan")}, "poison rate"),
        ({"poison_rate": 0.001}, "is no image; raise it"),
        ({"size": 0}, "does not fit"),
        ({"size": 33}, "does not fit"),
    ],
)
def test_options_that_cannot_work_are_refused_with_a_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(BadNets(**options), some())


def test_a_square_that_changes_nothing_is_refused() -> None:
    train = some(20)
    white = ImageSet(images=torch.full_like(train.images, 255), labels=train.labels, class_names=train.class_names)
    with pytest.raises(InputError, match="changes no pixel"):
        prepare(BadNets(), white)


def test_drawn_rows_ascend_and_come_from_the_candidates_without_repetition() -> None:
    candidates = torch.arange(1, 100, 2)
    rows = poison_rows(candidates, 0.3, 100, torch.Generator().manual_seed(0))
    assert len(rows) == 30
    assert bool((rows.diff() > 0).all())
    assert set(rows.tolist()) <= set(candidates.tolist())


def test_a_rate_beyond_the_candidates_is_refused_with_the_highest_that_works() -> None:
    with pytest.raises(InputError, match=r"needs 60 images, but only 50 may be poisoned; use at most 0\.5000"):
        poison_rows(torch.arange(50), 0.6, 100, torch.Generator())


def test_the_highest_rate_named_in_the_message_works() -> None:
    """20,000 of 30,000: 'use at most 0.6667' would be 20,001."""
    candidates = torch.arange(20_000)
    with pytest.raises(InputError) as caught:
        poison_rows(candidates, 0.9, 30_000, torch.Generator())
    named = float(str(caught.value).rsplit(" ", 1)[1])
    assert len(poison_rows(candidates, named, 30_000, torch.Generator())) == pytest.approx(20_000, rel=1e-3)
