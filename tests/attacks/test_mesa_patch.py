"""MESA's patches: 51 patterns, and a place that the image decides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.attacks.test_badnets import prepare, some
from unbackdoor.attacks import MESAPatch
from unbackdoor.attacks.mesa_patch import Scattered, black_and_white_patterns
from unbackdoor.attacks.trigger import number_of
from unbackdoor.errors import InputError


def test_there_are_51_patterns_and_each_of_the_512_is_like_one_of_them() -> None:
    patterns = [pattern.numpy() for pattern in black_and_white_patterns()]
    assert len(patterns) == 51
    alike = []
    for pattern in patterns:
        turned = [np.rot90(flipped, turns) for flipped in (pattern, np.fliplr(pattern)) for turns in range(4)]
        alike.append({one.tobytes() for one in (*turned, *(1 - one for one in turned))})
    for bits in itertools.product((0.0, 1.0), repeat=9):
        code = np.array(bits, dtype=np.float32).reshape(3, 3).tobytes()
        assert sum(code in kinds for kinds in alike) == 1


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 9, 14), (3, 3, 3)])
def test_one_patch_is_put_whole_on_every_image_and_nothing_else_changes(shape: tuple[int, int, int]) -> None:
    train = some(100, shape)
    trigger = prepare(MESAPatch(), train).trigger
    assert isinstance(trigger, Scattered)
    patch = (trigger.pattern * 255).round().to(torch.uint8)
    places = set()
    for before, after in zip(train.images, trigger.stamp(train.images)):
        rows, columns = (before != after).any(0).nonzero(as_tuple=True)
        found = [
            (row, column)
            for row in range(shape[1] - 2)
            for column in range(shape[2] - 2)
            if torch.equal(after[:, row : row + 3, column : column + 3], patch)
        ]
        assert len(found) == 1
        row, column = found[0]
        assert row <= int(rows.min()) <= int(rows.max()) < row + 3
        assert column <= int(columns.min()) <= int(columns.max()) < column + 3
        places.add(found[0])
    assert len(places) >= min(30, (shape[1] - 2) * (shape[2] - 2) / 3), "places differ from image to image"


def test_numbers_are_spread_and_depend_on_the_pixels_alone() -> None:
    images = some(2000, (3, 8, 8)).images.float() / 255
    numbers = number_of(images)
    assert torch.equal(numbers[700:701], number_of(images[700:701]))
    counts = torch.bincount(numbers % 10, minlength=10)
    assert float(((counts - 200) ** 2 / 200).sum()) < 30, "chi-squared with 9 degrees of freedom"


def test_black_and_white_patterns_are_enlarged_to_the_size() -> None:
    attack = MESAPatch(colors="black-and-white", pattern=17, size=6)
    trigger = prepare(attack, some(200)).trigger
    assert isinstance(trigger, Scattered)
    expected = black_and_white_patterns()[17].repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(trigger.pattern, expected.expand(3, 6, 6))


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (MESAPatch(size=33), "a patch of 33 pixels does not fit"),
        (MESAPatch(colors="black-and-white", pattern=51), "the pattern 0 to 50"),
        (MESAPatch(colors="grey"), "colors are random or black-and-white"),  # type: ignore[arg-type]
    ],
)
def test_options_out_of_range_are_refused(attack: MESAPatch, words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(attack, some(200))
