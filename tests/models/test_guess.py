"""A network is told from its state dict's names and shapes, or not at all."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.errors import CheckpointError
from unbackdoor.models import NETWORKS
from unbackdoor.models.guess import Guess, guess, measure, shapes_of


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize(("channels", "classes", "width"), [(3, 10, 4), (1, 43, 7), (3, 2, 64)])
def test_each_network_is_told_with_its_measures(name: str, channels: int, classes: int, width: int) -> None:
    with torch.device("meta"):
        shapes = shapes_of(NETWORKS[name](channels, classes, width))
    assert guess(shapes) == Guess(name, width, channels, classes)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_one_tensor_more_less_or_different_fits_nothing(name: str) -> None:
    with torch.device("meta"):
        shapes = shapes_of(NETWORKS[name](3, 10, 4))
    middle = sorted(shapes)[len(shapes) // 2]
    for wrong in (
        {**shapes, "extra": (1,)},
        {key: shape for key, shape in shapes.items() if key != middle},
        {**shapes, middle: (*shapes[middle], 1)},
        {},
    ):
        with pytest.raises(CheckpointError, match=r"cannot be told.*none fits.*--arch"):
            guess(wrong)


def test_measures_out_of_range_are_no_measures() -> None:
    with torch.device("meta"):
        shapes = shapes_of(NETWORKS["WRN16x1"](3, 10, 4))
    assert measure("WRN16x1", shapes) == Guess("WRN16x1", 4, 3, 10)
    assert measure("WRN16x1", {**shapes, "conv1.weight": (10**9, 3, 3, 3)}) is None
    assert measure("WRN16x1", {**shapes, "conv1.weight": (4, 3)}) is None
    assert measure("WRN16x1", {**shapes, "fc.weight": (0, 16)}) is None
    assert measure("my_code:net", shapes) is None
