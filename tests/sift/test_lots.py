"""What is drawn for a row depends on the seed, the purpose and its pixels, and on nothing else."""

from __future__ import annotations

import torch
from scipy.stats import kstest

from tests.planted import pictures, runtime
from unbackdoor.sift.lots import lots


def test_the_company_the_order_and_the_layout_in_memory_change_nothing() -> None:
    images = pictures(50, 1).images
    drawn = lots(images, runtime(), "a", 5)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lots(images[order], runtime(), "a", 5), drawn[order])
    assert torch.equal(lots(images[7:8], runtime(), "a", 5), drawn[7:8])
    assert torch.equal(lots(images.contiguous(memory_format=torch.channels_last), runtime(), "a", 5), drawn)


def test_another_seed_purpose_or_image_draws_independently() -> None:
    images = pictures(200, 1).images
    drawn = lots(images, runtime(), "a", 4)
    others = [
        lots(images, runtime(1), "a", 4),
        lots(images, runtime(), "b", 4),
        lots(images.flip(3), runtime(), "a", 4),
    ]
    for other in others:
        both = torch.stack([drawn.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.15
    assert abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.25


def test_numbers_are_evenly_spread_from_zero_to_below_one() -> None:
    drawn = lots(pictures(2000, 2).images, runtime(), "a", 3)
    assert drawn.dtype == torch.float64
    assert 0 <= float(drawn.min()) < float(drawn.max()) < 1
    assert kstest(drawn.flatten().numpy(), "uniform").pvalue > 1e-3
