"""The patterns of FTrojan, CTRL and LF against transforms of other libraries and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from tests.attacks.test_badnets import prepare, some
from unbackdoor.attacks import CTRL, LF, Attack, FTrojan
from unbackdoor.attacks.frequency import POSITIONS, cosine_wave, low_frequency_pattern, low_frequency_waves
from unbackdoor.attacks.trigger import Additive
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError

YCRCB = np.array([[0.299, 0.587, 0.114], [0.5, -0.418688, -0.081312], [-0.168736, -0.331264, 0.5]])
"""Of red, green and blue: brightness, Cr, Cb (ITU-R BT.601)."""
YUV = np.array([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.100]])


def in_frequency_domain(image: np.ndarray, to_chroma: np.ndarray, magnitude: float) -> np.ndarray:
    """Return an image (H, W, 3), 0 to 255, as the papers poison it: colours, transform, add, and back."""
    colors = image @ to_chroma.T
    for channel in (1, 2):
        for top in range(0, image.shape[0], 32):
            for left in range(0, image.shape[1], 32):
                window = dctn(colors[top : top + 32, left : left + 32, channel], norm="ortho")
                for row, column in POSITIONS:
                    window[row, column] += magnitude
                colors[top : top + 32, left : left + 32, channel] = idctn(window, norm="ortho")
    back: np.ndarray = colors @ np.linalg.inv(to_chroma).T
    return back


@pytest.mark.parametrize(("attack", "matrix"), [(FTrojan(), YCRCB), (CTRL(), YUV)], ids=["FTrojan", "CTRL"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 32)])
def test_the_fixed_pattern_does_what_the_transforms_do(
    attack: FTrojan | CTRL, matrix: np.ndarray, shape: tuple[int, int, int]
) -> None:
    train = some(100, shape)
    # Away from black and white, where both clip.
    middle = ImageSet(images=train.images // 2 + 64, labels=train.labels, class_names=train.class_names)
    trigger = prepare(attack, middle).trigger
    image = middle.images[0].permute(1, 2, 0).double().numpy()
    expected = in_frequency_domain(image, matrix, attack.magnitude)
    ours = trigger(middle.images[:1].float() / 255)[0].permute(1, 2, 0).numpy() * 255
    # The published matrices are rounded to three digits.
    np.testing.assert_allclose(ours, expected, atol=0.05)


def test_a_wave_is_one_coefficient_of_the_transform() -> None:
    for row, column in (*POSITIONS, (1, 30)):
        spectrum = dctn(cosine_wave(row, column).double().numpy(), norm="ortho")
        expected = np.zeros((32, 32))
        expected[row, column] = 1
        np.testing.assert_allclose(spectrum, expected, atol=1e-5)


@pytest.mark.parametrize("attack", [FTrojan(), CTRL()], ids=["FTrojan", "CTRL"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 50, 20)])
def test_grey_and_odd_sizes_get_a_pattern_too(attack: Attack, shape: tuple[int, int, int]) -> None:
    train = some(100, shape)
    fitted = prepare(attack, train)
    assert fitted.train.shape == shape
    assert not torch.equal(fitted.train.images, train.images)


@pytest.mark.parametrize("magnitude", [0.0, -1.0, math.inf, math.nan])
def test_a_magnitude_that_is_no_positive_number_is_refused(magnitude: float) -> None:
    with pytest.raises(InputError, match="the magnitude must be a positive number"):
        prepare(FTrojan(magnitude=magnitude), some())


def test_low_frequency_waves_are_all_of_at_most_two_periods_and_independent() -> None:
    waves = low_frequency_waves(16, 20, 2)
    spectrum = torch.fft.fft2(waves.double()).abs()
    rows = torch.fft.fftfreq(16, 1 / 16).abs()[:, None].expand(16, 20)
    columns = torch.fft.fftfreq(20, 1 / 20).abs()[None, :].expand(16, 20)
    assert float(spectrum[:, (rows > 2) | (columns > 2)].max()) < 1e-3
    assert float(spectrum[:, 0, 0].max()) < 1e-3, "no constant, which rescaling takes away"
    # 5 x 5 frequencies without the constant, a sine and a cosine for each opposite pair.
    assert len(waves) == 24
    assert int(torch.linalg.matrix_rank(waves.flatten(1))) == 24


def test_the_pattern_runs_from_zero_to_its_amplitude() -> None:
    waves = low_frequency_waves(12, 12, 2)
    pattern = low_frequency_pattern(torch.randn(3, 24, generator=torch.Generator().manual_seed(0)), waves, 0.2)
    assert float(pattern.min()) == pytest.approx(0, abs=1e-6)
    assert float(pattern.max()) == pytest.approx(0.2, abs=1e-6)


def test_without_steps_lf_is_a_random_smooth_pattern_and_needs_no_model() -> None:
    trigger = prepare(LF(steps=0), some()).trigger
    assert isinstance(trigger, Additive)
    spectrum = torch.fft.fft2(trigger.signal - trigger.signal.mean((1, 2), keepdim=True)).abs().square()
    low = torch.fft.fftfreq(32, 1 / 32).abs() <= 2
    kept = spectrum[:, low][:, :, low].sum() / spectrum.sum()
    assert float(kept) > 0.997, "the share that the published patterns have there"
