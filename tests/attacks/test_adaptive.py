"""Adaptive-Blend, Adaptive-Patch and TaCT: what training and testing show, and to which images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.attacks.test_badnets import prepare, some
from tests.planted import runtime
from unbackdoor.attacks import CLEAN, COVER, POISON, AdaptiveBlend, AdaptivePatch, Stamp, TaCT
from unbackdoor.attacks.adaptive_blend import piece_masks
from unbackdoor.attacks.adaptive_patch import patches
from unbackdoor.errors import InputError


def test_masks_are_random_halves_of_sixteen_pieces() -> None:
    masks = piece_masks(500, (32, 24), 8, torch.Generator().manual_seed(0))
    pieces = masks.view(500, 4, 8, 4, 6)
    assert torch.equal(pieces.amin((2, 4)), pieces.amax((2, 4))), "a piece is shown whole or not at all"
    shown = pieces.amax((2, 4)).flatten(1)
    assert bool((shown.sum(1) == 8).all())
    assert float((shown.mean(0) - 0.5).abs().max()) < 0.1, "every piece as often as any other"
    assert len({tuple(row) for row in shown.int().tolist()}) > 300


def test_training_shows_pieces_at_its_opacity_and_testing_the_whole_at_another() -> None:
    train = some(500)
    attack = AdaptiveBlend(poison_rate=0.1, cover_rate=0.2)
    fitted = prepare(attack, train)
    trigger = fitted.trigger
    assert isinstance(trigger, Stamp)
    picture = trigger.pattern.numpy() * 255
    for row in (fitted.kinds != CLEAN).nonzero().flatten().tolist():
        before, after = train.images[row].numpy().astype(float), fitted.train.images[row].numpy()
        blended = np.rint(0.85 * before + 0.15 * picture)
        shown = 0
        for top in range(0, 32, 8):
            for left in range(0, 32, 8):
                piece = (slice(None), slice(top, top + 8), slice(left, left + 8))
                if (np.abs(after[piece] - blended[piece]) <= 1).all() and not (after[piece] == before[piece]).all():
                    shown += 1
                else:
                    np.testing.assert_array_equal(after[piece], before[piece])
        assert shown == 8
    np.testing.assert_allclose(trigger.mask, 0.2)
    assert int((fitted.kinds == POISON).sum()) == 50
    assert int((fitted.kinds == COVER).sum()) == 100


def test_each_training_image_gets_one_of_four_faint_patches_and_testing_two_opaque_ones() -> None:
    train = some(400)
    fitted = prepare(AdaptivePatch(poison_rate=0.1, cover_rate=0.2), train)
    made = patches(train.shape, runtime())
    for kind, each in ((POISON, 10), (COVER, 20)):
        counts = [0] * 4
        for row in (fitted.kinds == kind).nonzero().flatten().tolist():
            for number, (opacity, patch) in enumerate(zip((0.5, 0.2, 0.5, 0.3), made)):
                faint = Stamp(mask=opacity * patch.mask, pattern=patch.pattern).stamp(train.images[row : row + 1])
                counts[number] += int(torch.equal(faint[0], fitted.train.images[row]))
        assert counts == [each] * 4
    tested = fitted.trigger.stamp(train.images)
    expected = made[2].stamp(made[0].stamp(train.images))
    assert torch.equal(tested, expected)


def test_testing_may_put_on_other_patches_as_on_gtsrb_and_training_may_be_fainter() -> None:
    train = some(400)
    attack = AdaptivePatch(poison_rate=0.1, cover_rate=0.1, tested=(3, 1), opacities=(0.1, 0.2, 0.3, 0.4))
    fitted, made = prepare(attack, train), patches(train.shape, runtime())
    assert torch.equal(fitted.trigger.stamp(train.images), made[3].stamp(made[1].stamp(train.images)))
    row = int((fitted.kinds == POISON).nonzero()[0])
    faint = [
        Stamp(mask=opacity * one.mask, pattern=one.pattern).stamp(train.images[row : row + 1])[0]
        for opacity, one in zip((0.1, 0.2, 0.3, 0.4), made)
    ]
    assert sum(torch.equal(one, fitted.train.images[row]) for one in faint) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"tested": ()},
        {"tested": (4,)},
        {"tested": (-1,)},
        {"tested": (2, 2)},
        {"opacities": (0.5,) * 3},
        {"opacities": (0.5, 0.2, 0.0, 0.3)},
    ],
    ids=str,
)
def test_adaptive_patch_refuses_options_out_of_range(change: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(InputError, match=r"AdaptivePatch: .*, found \("):
        prepare(replace(AdaptivePatch(poison_rate=0.1, cover_rate=0.1), **change), some(100))  # type: ignore[arg-type]


def test_the_four_patches_lie_apart() -> None:
    masks = torch.stack([one.mask for one in patches((3, 32, 32), runtime())])
    assert float(masks.sum(0).max()) == 1
    assert masks.flatten(1).sum(1).tolist() == [64, 64, 16, 64]


def test_tact_poisons_its_source_and_covers_its_cover_classes() -> None:
    train = some(1000, classes=10)
    fitted = prepare(TaCT(poison_rate=0.05, cover_rate=0.05), train)
    assert set(train.labels[fitted.kinds == POISON].tolist()) == {1}
    assert set(train.labels[fitted.kinds == COVER].tolist()) == {5, 7}
    assert set(fitted.train.labels[fitted.kinds == POISON].tolist()) == {0}
    assert fitted.criterion.counted(torch.arange(10)).nonzero().flatten().tolist() == [1]


def test_tact_without_cover_classes_covers_all_but_its_sources() -> None:
    train = some(1000, classes=10)
    fitted = prepare(TaCT(poison_rate=0.05, cover_rate=0.3, covers=()), train)
    assert set(train.labels[fitted.kinds == COVER].tolist()) == set(range(10)) - {1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sources": ()}, "one source class or more"),
        ({"covers": (1,)}, "neither a source nor the target"),
        ({"covers": (0,)}, "neither a source nor the target"),
        ({"covers": (12,)}, "class 12 is out of range"),
    ],
)
def test_tact_refuses_classes_that_contradict(change: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(replace(TaCT(poison_rate=0.01, cover_rate=0.01), **change), some(1000, classes=10))


@pytest.mark.parametrize("change", [{"alpha": 0.0}, {"test_alpha": 1.1}, {"pieces": 17}, {"pieces": 0}])
def test_adaptive_blend_refuses_options_out_of_range(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="opacities must lie above 0"):
        prepare(replace(AdaptiveBlend(), **change), some(500))  # type: ignore[arg-type]
