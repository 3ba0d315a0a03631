"""BPP's quantisation against the published formula."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.attacks.test_badnets import prepare, some
from tests.planted import runtime
from unbackdoor.attacks import BPP
from unbackdoor.errors import InputError
from unbackdoor.training import Batch


def test_pixels_are_rounded_to_eight_levels() -> None:
    trigger = prepare(BPP(), some()).trigger
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = np.rint(np.rint(np.arange(256) / 255 * 7) / 7 * 255).reshape(16, 16)
    np.testing.assert_array_equal(trigger.stamp(every)[0, 0].numpy(), expected)
    assert len(set(expected.flatten().tolist())) == 8


def test_covers_get_the_rounding_error_of_another_image() -> None:
    train = some(40)
    fitted = prepare(BPP(target=2), train)
    assert fitted.hook
    images = train.images.float() / 255
    batch = Batch(images=images, targets=train.labels, rows=torch.arange(40))
    made = fitted.hook.batch(torch.nn.Identity(), batch, torch.Generator())
    assert torch.equal(made.images[:4], fitted.trigger(images[:4]))
    others = images[24:28]
    torch.testing.assert_close(made.images[4:8], (images[4:8] + fitted.trigger(others) - others).clamp(0, 1))
    assert torch.equal(made.images[8:], images[8:])
    assert made.targets[:4].tolist() == [2] * 4
    assert torch.equal(made.targets[4:], train.labels[4:])


def test_images_that_have_few_levels_already_are_refused() -> None:
    train = some()
    black_and_white = replace(train, images=(train.images > 127).to(torch.uint8) * 255)
    with pytest.raises(InputError, match="changes no pixel"):
        prepare(BPP(), black_and_white)
    # One image that has more levels is enough to train with, but poisoned data need it among the poisoned rows.
    mixed = replace(train, images=torch.cat([black_and_white.images[:-1], train.images[-1:]]))
    prepare(BPP(), mixed)
    with pytest.raises(InputError, match="changes no pixel"):
        BPP(poison_rate=0.005).poison_data(mixed, runtime())


@pytest.mark.parametrize("levels", [1, 0, 256])
def test_other_numbers_of_levels_are_refused(levels: int) -> None:
    with pytest.raises(InputError, match="levels must be 2 to 255"):
        prepare(BPP(levels=levels), some())
