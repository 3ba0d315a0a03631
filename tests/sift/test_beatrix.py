"""Beatrix: Gram matrices and deviations against plain loops, and rows whose channels go together unusually."""

from __future__ import annotations

import pytest
import torch

from tests.sift.spread import SHAPE, auroc, images_of, reader, runtime
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.sift import Beatrix
from unbackdoor.sift.beatrix import beyond, bounds_of, gram


@pytest.mark.parametrize("order", [1, 2, 3, 8])
def test_gram_matrices_are_those_of_the_formula(order: int) -> None:
    maps = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = gram(maps, order)
    for row in range(3):
        expected = []
        for i in range(4):
            for j in range(i, 4):
                product = float((maps[row, i] ** order * maps[row, j] ** order).sum())
                expected.append((1 if product > 0 else -1) * abs(product) ** (1 / order))
        assert found[row].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_large_features_do_not_overflow() -> None:
    maps = 1e5 * torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert bool(gram(maps, 8).isfinite().all())


def test_deviations_count_only_what_lies_beyond_ten_mads() -> None:
    entries = torch.tensor([[1.0], [2.0], [3.0], [2.0], [2.5]])
    median, mad = bounds_of(entries)
    assert (float(median), float(mad)) == (2.0, 0.5)
    found = beyond(torch.tensor([[2.0], [6.9], [7.7], [-2.9], [-6.0]]), median, mad)
    assert found.tolist() == pytest.approx([0.0, 0.0, 0.7 / 7, 0.0, 3.0 / 3])


def rows(planted: float, count: int = 400) -> tuple[DefenderData, torch.Tensor]:
    """Return rows whose channels are independent, but in a share of class 2, where the second is like the first."""
    generator = torch.Generator().manual_seed(0)
    pixels = 0.25 * torch.randn(count, *SHAPE, generator=generator)
    labels = torch.arange(count) % 5
    chosen = (labels == 2).nonzero().squeeze(1)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[chosen[: round(0.2 * len(chosen))]] = True
    share = planted * mask[:, None, None]
    pixels[:, 1] = (1 - share) * pixels[:, 1] + share * (pixels[:, 0] * 3)
    return DefenderData(untrusted=images_of(pixels.flatten(1), labels)), mask


def test_rows_whose_channels_go_together_are_found_and_without_them_nothing_is() -> None:
    data, mask = rows(1.0)
    found = Beatrix(orders=4).score(data, runtime(), reader())
    assert auroc(found.scores, mask) > 0.88
    plain, _ = rows(0.0)
    assert auroc(Beatrix(orders=4).score(plain, runtime(), reader()).scores, mask) < 0.7


def test_medians_come_from_clean_samples_where_there_are_any() -> None:
    data, mask = rows(1.0)
    plain, _ = rows(0.0)
    both = DefenderData(untrusted=data.untrusted, clean=plain.untrusted)
    found = Beatrix(orders=2).score(both, runtime(), reader())
    assert auroc(found.scores, mask) > 0.85
    assert not torch.equal(found.scores, Beatrix(orders=2).score(data, runtime(), reader()).scores)


@pytest.mark.parametrize("options", [{"orders": 0}, {"references": 1}, {"poisoned_share": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="Beatrix: "):
        Beatrix(**options)  # type: ignore[arg-type]
