"""The pixel-space search takes the steps of SGD on pixels, stays among pixels, and finds a hand-made backdoor."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.patched import PATCH, SIZE, TARGET, patched
from tests.planted import CLASSES, SHAPE, network, pictures, runtime
from unbackdoor.scan.patch_search import search_patches
from unbackdoor.scan.patches import draw_places, stamped


def starts(count: int) -> Tensor:
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).repeat(count, 1, 1, 1)


def test_all_targets_together_take_the_steps_of_sgd_with_momentum_on_each_alone() -> None:
    model, clean = network(0).eval().requires_grad_(False), pictures(40, 5)
    found, _, steps = search_patches(model, clean, torch.tensor([1, 6]), starts(2), runtime(), steps=3, batch_size=8)
    assert steps == 3
    for number, target in enumerate((1, 6)):
        draws = runtime().generator("patch search", SIZE)
        patch = starts(1)[0].clone().requires_grad_(True)
        optimizer = torch.optim.SGD([patch], 0.1, momentum=0.9)
        for _ in range(3):
            rows = torch.randint(40, (8,), generator=draws)
            places = draw_places(8, SHAPE, SIZE, draws)
            images = stamped(clean.images[rows].float() / 255, patch.expand(8, -1, -1, -1), places)
            optimizer.zero_grad()
            F.cross_entropy(model(images), torch.full((8,), target)).backward()
            optimizer.step()
            with torch.no_grad():
                patch.clamp_(0, 1)
        torch.testing.assert_close(found[number], patch.detach(), rtol=1e-3, atol=1e-5)


def test_a_budget_that_is_large_enough_changes_nothing() -> None:
    model, clean = network(0).eval().requires_grad_(False), pictures(40, 5)
    free, limited = (
        search_patches(model, clean, torch.tensor([1]), starts(1), some, steps=3, batch_size=8)
        for some in (runtime(), replace(runtime(), budget=10.0))
    )
    assert torch.equal(free[0], limited[0])
    assert (free[2], limited[2]) == (3, 3)


def test_a_backdoor_is_found_and_the_other_classes_have_no_such_patch() -> None:
    model, clean = patched(2.0).requires_grad_(False), pictures(200, 7)
    targets = torch.arange(CLASSES).repeat(4)
    begun = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).repeat_interleave(CLASSES, 0)
    patches, success, _ = search_patches(model, clean, targets, begun, runtime(), steps=40, batch_size=16)
    assert 0 <= float(patches.min()) <= float(patches.max()) <= 1
    best = int(success.argmax())
    assert targets[best] == TARGET
    assert success[best] > 0.9
    assert success[targets != TARGET].max() < 0.5
    assert (patches[best] - PATCH).abs().mean() < 0.2
