"""A pass has as many images as memory takes: fewer, the larger they are; and what is found does not depend on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.planted import CLASSES, NAMES, network, pictures, runtime
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.scan import (
    MESA,
    NeuralCleanse,
    Scanner,
    SmoothPerturbations,
    UniversalPerturbations,
    mesa,
    passes,
    patch_search,
)
from unbackdoor.scan.neural_cleanse import _Search
from unbackdoor.scan.passes import at_once, tiles
from unbackdoor.scan.screening import worth_searching
from unbackdoor.scan.universal import log_odds, universal_perturbations

PLACES = 40 * 12 * 12


def test_a_pass_has_fewer_images_the_larger_they_are_and_never_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(passes.PLACES, "cpu", PLACES)
    assert [at_once((3, side, side), runtime()) for side in (6, 12, 24, 500)] == [160, 40, 10, 1]
    assert at_once((9, 1, 12, 12), runtime()) == 40, "channels do not count, nor does the number of images"


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 32), (3, 41), (100, 7), (5, 400)])
def test_tiles_cover_every_cell_once_and_none_is_larger_than_a_pass(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(passes.PLACES, "cpu", PLACES)
    covered = torch.zeros(rows, columns)
    for these, some in tiles(rows, columns, (3, 12, 12), runtime()):
        covered[these, some] += 1
        assert 0 < covered[these, some].numel() <= 40
    assert torch.equal(covered, torch.ones(rows, columns))


SEARCHES = {
    "NeuralCleanse": NeuralCleanse(rounds=1, steps=1, batch_size=16, most_classes=4),
    "UniversalPerturbations": UniversalPerturbations(steps=1, batch_size=16, most_classes=4),
    "SmoothPerturbations": SmoothPerturbations(steps=1, batch_size=16, most_classes=4),
    "MESA": MESA(finalists=0),
    "MESA, generators": MESA(finalists=1, betas=(0.9, 0.5), steps=1, batch_size=32, hidden=4),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_the_largest_pass_of_a_scan_shrinks_with_the_size_of_the_images(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(passes.PLACES, "cpu", PLACES)
    monkeypatch.setattr(mesa, "SCREENING_STEPS", 1)
    monkeypatch.setattr(patch_search, "JUDGED", 16)
    assert [largest_pass(SEARCHES[name], side) <= most for side, most in ((12, 40), (24, 10), (48, 2))] == [True] * 3


def largest_pass(scanner: Scanner, side: int) -> int:
    """Return how many images of that side the network sees at most at once."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 3, side, side), dtype=torch.uint8, generator=draws)
    clean = ImageSet(images=images, labels=torch.arange(60) % CLASSES, class_names=NAMES)
    counts = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        counts.append(len(inputs[0]))

    model = network(0).eval().requires_grad_(False)
    model.body[0].register_forward_hook(count)
    scanner.inspect(model, DefenderData(clean=clean), runtime())
    return max(counts)


@pytest.mark.parametrize("images", [1, 5, 13])
def test_changes_found_in_parts_are_those_found_at_once(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = network(0).eval().requires_grad_(False), pictures(40, 5)

    def found() -> tuple[Tensor, Tensor, list[int]]:
        changes = universal_perturbations(model, clean.images, CLASSES, 1.0, runtime(), steps=3, batch_size=8)
        odds = log_odds(model, clean, torch.arange(CLASSES), changes, runtime())
        return changes, odds, worth_searching(model, clean, 3, runtime())[0].tolist()

    whole = found()
    monkeypatch.setitem(passes.PLACES, "cpu", images * 12 * 12)
    parts = found()
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-3, atol=1e-4)
    assert parts[2] == whole[2]


@pytest.mark.parametrize("images", [1, 5, 13])
def test_a_step_of_neural_cleanse_in_parts_is_the_step_at_once(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> tuple[Tensor, ...]:
        model = network(0).eval().requires_grad_(False)
        every = torch.arange(CLASSES)
        search = _Search(NeuralCleanse(), model, pictures(40, 5), every, replace(runtime(), seed=3))
        hits = search.step(torch.tensor([1, 4, 6]), torch.arange(11))
        assert search.mask_raw.grad is not None
        assert search.pattern_raw.grad is not None
        return hits, search.mask_raw.grad, search.pattern_raw.grad

    whole = step()
    monkeypatch.setitem(passes.PLACES, "cpu", images * 12 * 12)
    for part, value in zip(step(), whole):
        torch.testing.assert_close(part, value, rtol=1e-3, atol=1e-6)
