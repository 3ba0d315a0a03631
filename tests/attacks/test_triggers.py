"""Triggers change pixels as their formulas say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unbackdoor.attacks import Additive, Stamp, Trigger
from unbackdoor.attacks.saved import TRIGGERS
from unbackdoor.errors import InputError


def images(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 5, 4), generator=generator, dtype=torch.uint8)


def stamp() -> Stamp:
    generator = torch.Generator().manual_seed(1)
    return Stamp(mask=torch.rand(1, 5, 4, generator=generator), pattern=torch.rand(3, 5, 4, generator=generator))


def additive() -> Additive:
    return Additive(signal=torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1)


def test_stamp_mixes_pattern_into_image_by_the_mask() -> None:
    trigger, x = stamp(), images().float() / 255
    expected = np.empty(x.shape)
    for n, c, i, j in np.ndindex(*x.shape):
        opacity = float(trigger.mask[0, i, j])
        expected[n, c, i, j] = (1 - opacity) * float(x[n, c, i, j]) + opacity * float(trigger.pattern[c, i, j])
    np.testing.assert_allclose(trigger(x).numpy(), expected, atol=1e-6)


def test_a_mask_may_differ_by_channel() -> None:
    mask = torch.zeros(3, 5, 4)
    mask[1] = 1
    changed = Stamp(mask=mask, pattern=torch.ones(3, 5, 4)).stamp(images())
    assert bool((changed[:, 1] == 255).all())
    assert torch.equal(changed[:, [0, 2]], images()[:, [0, 2]])


def test_additive_adds_and_clips_and_does_not_wrap() -> None:
    signal = torch.zeros(3, 5, 4)
    signal[0], signal[1], signal[2] = 100.4 / 255, -100.4 / 255, 10 / 255
    before = images().numpy().astype(int)
    after = Additive(signal=signal).stamp(images()).numpy()
    np.testing.assert_array_equal(after[:, 2], np.minimum(before[:, 2] + 10, 255))
    np.testing.assert_array_equal(after[:, 0], np.minimum(np.rint(before[:, 0] + 100.4), 255))
    np.testing.assert_array_equal(after[:, 1], np.maximum(np.rint(before[:, 1] - 100.4), 0))


@pytest.mark.parametrize(("value", "expected"), [(0.49, 100), (0.51, 101), (0.9, 101), (-0.49, 100), (-0.51, 99)])
def test_stamped_images_are_rounded_to_the_nearest_of_8_bits(value: float, expected: int) -> None:
    """Truncation, as in the published code, would give 100 for 100.9."""
    trigger = Additive(signal=torch.full((1, 1, 1), value / 255))
    assert int(trigger.stamp(torch.full((1, 1, 1, 1), 100, dtype=torch.uint8))) == expected


@pytest.mark.parametrize("trigger", [stamp(), additive()], ids=lambda trigger: type(trigger).__name__)
class TestEveryTrigger:
    def test_an_image_s_trigger_does_not_depend_on_its_company(self, trigger: Trigger) -> None:
        together = trigger.stamp(images())
        assert all(torch.equal(trigger.stamp(image[None])[0], row) for image, row in zip(images(), together))

    def test_images_stay_in_range_and_are_not_changed_in_place(self, trigger: Trigger) -> None:
        x, ends = images(), torch.stack([torch.zeros(3, 5, 4), torch.ones(3, 5, 4)])
        assert 0 <= float(trigger(ends).min()) <= float(trigger(ends).max()) <= 1
        trigger.stamp(x)
        assert torch.equal(x, images())

    def test_gradients_pass_through(self, trigger: Trigger) -> None:
        x = (images().double() / 255).clamp(0.45, 0.55).requires_grad_(True)
        gentle = type(trigger).from_state({name: value / 10 for name, value in trigger.state_dict().items()})
        assert torch.autograd.gradcheck(gentle.double(), (x,))

    def test_the_state_is_all_that_is_needed(self, trigger: Trigger) -> None:
        again = TRIGGERS[type(trigger).__name__].from_state(trigger.state_dict())
        assert torch.equal(again.stamp(images()), trigger.stamp(images()))
        assert tuple(trigger.state_dict()) == trigger.buffer_names()
        assert not list(trigger.parameters())

    def test_a_missing_buffer_is_a_key_error(self, trigger: Trigger) -> None:
        with pytest.raises(KeyError):
            type(trigger).from_state({})


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean Stamp"):
        TRIGGERS["Stmp"]
