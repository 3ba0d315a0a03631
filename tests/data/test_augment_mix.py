"""CutMix: what is pasted, and that the targets say exactly how much."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unbackdoor.data.augment import CutMix
from unbackdoor.errors import InputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 6),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    alpha=st.floats(0.1, 5),
    seed=st.integers(0, 1000),
)
def test_the_weight_of_a_class_is_its_number_of_pixels(
    batch: int, height: int, width: int, alpha: float, seed: int
) -> None:
    """Each image is filled with its own number, so that the mixed image can be counted."""
    shape = (batch, 2, height, width)
    images = torch.arange(batch, dtype=torch.uint8).view(-1, 1, 1, 1).expand(shape)
    cutmix = CutMix(alpha=alpha, probability=0.8)
    draw = cutmix.draw(shape, seeded(seed))
    mixed, targets = cutmix.apply(images, draw), cutmix.mix(torch.eye(batch), draw)
    for image, target in zip(mixed, targets, strict=True):
        counts = np.bincount(image[0].flatten().numpy(), minlength=batch)
        assert np.allclose(target.numpy(), counts / (height * width), atol=1e-6)


def test_the_box_shows_the_partner_at_the_same_place_and_the_rest_is_the_image() -> None:
    shape = (8, 3, 9, 11)
    images = torch.rand(shape, generator=seeded())
    draw = CutMix(probability=1.0).draw(shape, seeded(1))
    mixed = CutMix().apply(images, draw)
    assert not torch.equal(mixed, images)
    for i in range(8):
        top, bottom, left, right = (int(draw[key][i]) for key in ("top", "bottom", "left", "right"))
        expected = images[i].clone()
        expected[:, top:bottom, left:right] = images[draw["partner"][i], :, top:bottom, left:right]
        assert torch.equal(mixed[i], expected)


def test_soft_targets_are_mixed_and_stay_probabilities() -> None:
    targets = torch.softmax(torch.randn(8, 4, generator=seeded()), dim=1)
    draw = CutMix(probability=1.0).draw((8, 3, 10, 10), seeded(2))
    mixed = CutMix().mix(targets, draw)
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(8))
    for i in range(8):
        share, partner = float(draw["share"][i]), int(draw["partner"][i])
        torch.testing.assert_close(mixed[i], (1 - share) * targets[i] + share * targets[partner])


def test_boxes_are_as_frequent_and_as_large_as_stated() -> None:
    """With a large alpha each box has half the area, unless the border cuts it off."""
    draw = CutMix(alpha=1e4, probability=0.3).draw((4000, 3, 100, 200), seeded())
    present = draw["share"] > 0
    low, high = stats.binom.interval(0.9999, 4000, 0.3)
    assert low <= int(present.sum()) <= high
    height, width = (draw["bottom"] - draw["top"])[present], (draw["right"] - draw["left"])[present]
    assert abs(int(height.max()) - 71) <= 2
    assert abs(int(width.max()) - 141) <= 4
    assert 0.2 < draw["share"][present].mean() < 0.45
    centre = ((draw["top"] + draw["bottom"]) / 2)[present].mean()
    assert abs(float(centre) - 50) < 2


def test_a_small_alpha_gives_all_or_nothing() -> None:
    share = CutMix(alpha=0.01, probability=1.0).draw((1000, 3, 50, 50), seeded())["share"]
    assert 0.4 < (share < 0.02).float().mean() < 0.6
    # A whole image's box about a centre anywhere still covers a quarter at least.
    assert ((share < 0.02) | (share > 0.2)).float().mean() > 0.9


def test_every_image_is_the_partner_of_one_other() -> None:
    partners = CutMix().draw((20, 3, 8, 8), seeded())["partner"]
    assert sorted(partners.tolist()) == list(range(20))


@pytest.mark.parametrize("targets", [torch.arange(4), torch.eye(4, dtype=torch.int64), torch.rand(4)])
def test_targets_that_are_no_probabilities_are_refused(targets: torch.Tensor) -> None:
    draw = CutMix().draw((4, 3, 8, 8), seeded())
    with pytest.raises(InputError, match=r"CutMix mixes class probabilities .*one-hot"):
        CutMix().mix(targets, draw)
