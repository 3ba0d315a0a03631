"""Frequencies, against SciPy's transform and networks that listen to one frequency alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from tests.inspect.known import linear, material, random_images
from tests.planted import planted, runtime
from unbackdoor.errors import InputError
from unbackdoor.inspect import Frequency, Pictures
from unbackdoor.inspect.frequency import bands_of, changed_answers, sensitivity, shades
from unbackdoor.spectrum import dct_matrix, images_of, smoothed, spectrum_of


def wave(row: int, column: int, height: int = 8, width: int = 8) -> torch.Tensor:
    """Return the pixels of one coefficient of the transform."""
    return torch.outer(dct_matrix(height)[row], dct_matrix(width)[column])


def test_the_matrix_is_the_cosine_transform_s() -> None:
    size = 7
    for row in range(size):
        scale = math.sqrt((1 if row == 0 else 2) / size)
        expected = [scale * math.cos(math.pi * (2 * place + 1) * row / (2 * size)) for place in range(size)]
        assert dct_matrix(size)[row].tolist() == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 10))
@settings(max_examples=20, deadline=None)
def test_smoothed_images_have_the_lowest_frequencies_alone(height: int, width: int, frequencies: int) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    kept = spectrum_of(images)
    kept[:, :, frequencies:] = 0
    kept[..., frequencies:] = 0
    torch.testing.assert_close(smoothed(images, frequencies), images_of(kept))


def test_the_spectrum_is_scipy_s_and_goes_back() -> None:
    images = torch.rand(2, 3, 6, 9, generator=torch.Generator().manual_seed(1))
    spectrum = spectrum_of(images)
    np.testing.assert_allclose(spectrum, dctn(images.numpy(), axes=(2, 3), norm="ortho"), atol=1e-5)
    torch.testing.assert_close(images_of(spectrum), images)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_the_bands_add_up_to_the_image(height: int, width: int, count: int) -> None:
    bands = bands_of(height, width, count)
    assert bands[0, 0] == 0
    if height > 1 and width > 1:
        assert bands[-1, -1] == count - 1
        assert bool((bands.diff(dim=0) >= 0).all())
        assert bool((bands.diff(dim=1) >= 0).all())
    image = torch.rand(1, 1, height, width)
    spectrum = spectrum_of(image)
    parts = [images_of(spectrum * (bands == number)) for number in range(count)]
    torch.testing.assert_close(torch.stack(parts).sum(0), image, atol=1e-5, rtol=1e-4)


def test_the_highest_frequency_is_that_of_both_directions_together() -> None:
    bands = bands_of(8, 8, 10)
    assert (bands[7, 0], bands[0, 7], bands[7, 7]) == (7, 7, 9), "sqrt(1 / 2) lies in the eighth of ten"


def test_a_network_that_listens_to_one_frequency_needs_its_band_alone() -> None:
    # Its answer is the sign of one coefficient, but for a little of the mean that decides where there is none.
    network = linear(torch.stack([1e-3 * wave(0, 0)[None], wave(5, 2)[None]]))
    images = random_images((1, 8, 8), 400, 2)
    spectrum = spectrum_of(images.images.float() / 255)[:, 0]
    second = float((spectrum[:, 5, 2] > 1e-3 * spectrum[:, 0, 0]).float().mean())
    band = int(bands_of(8, 8, 6)[5, 2])
    changed = changed_answers(network, images, 6, runtime())
    assert 0.4 < second < 0.6
    assert float(changed[band]) == pytest.approx(second, abs=1e-6), "without it, all get the first class"
    assert float(changed.sum() - changed[band]) < 0.03


def test_changed_answers_are_those_of_filtered_images_one_by_one() -> None:
    suspect = planted(1).suspect
    images = material().clean.subset(torch.arange(40))
    found = changed_answers(suspect, images, 3, runtime())
    bands = bands_of(12, 12, 3).numpy()
    expected = [0, 0, 0]
    for image in images.images.numpy() / 255.0:
        answers = []
        for band in (None, 0, 1, 2):
            coefficients = dctn(image, axes=(1, 2), norm="ortho")
            if band is not None:
                coefficients[:, bands == band] = 0
            back = dctn(coefficients, type=3, axes=(1, 2), norm="ortho")
            with torch.no_grad():
                answers.append(int(suspect(torch.from_numpy(back).float()[None]).argmax()))
        for band in range(3):
            expected[band] += answers[band + 1] != answers[0]
    assert found.tolist() == pytest.approx([count / 40 for count in expected], abs=0.03)


def test_the_sensitivity_of_a_linear_network_is_the_spectrum_of_its_weights() -> None:
    weights = torch.randn(2, 3, 6, 9, generator=torch.Generator().manual_seed(3))
    images = random_images((3, 6, 9), 300, 2)
    answers = (images.images.float() / 255).flatten(1) @ weights.flatten(1).T
    of_each = spectrum_of(weights).abs().mean(1)
    expected = of_each[answers.argmax(1)].mean(0)
    torch.testing.assert_close(sensitivity(linear(weights), images, runtime()), expected, rtol=1e-3, atol=1e-5)


def test_shades_are_shares_of_the_largest() -> None:
    assert shades(torch.tensor([[4.0, 1.0], [2.0, 0.0]])).tolist() == [[1.0, 0.25], [0.5, 0.0]]
    assert shades(torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_the_sharp_trigger_is_lost_with_a_band_that_clean_images_hardly_need() -> None:
    found = Frequency(bands=4).inspect(planted(1).suspect, material(), runtime())
    suspect = found.measured["suspect"]
    gap = [woken - clean for clean, woken in zip(suspect["clean"]["changed"], suspect["triggered"]["changed"])]
    assert max(gap[1:]) > 0.1
    assert suspect["clean"]["changed"][0] > 0.3
    assert "of the suspect's answers to triggered images change" in found.headline
    assert isinstance(found.figures[-1], Pictures)
    assert [caption for caption, _ in found.figures[-1].pictures] == [
        f"{name}, {kind}" for name in ("suspect", "reference") for kind in ("clean", "triggered")
    ]


def test_a_trigger_that_no_band_holds_is_said() -> None:
    found = Frequency(bands=3)
    at = {"clean": {"changed": [0.5, 0.2, 0.1]}, "triggered": {"changed": [0.5, 0.1, 0.0]}}
    assert found._headline(at).startswith("There is no band of frequencies")
    at["triggered"]["changed"][1] = 0.3
    assert found._headline(at) == (
        "Without the band from 33.3 to 66.7 % of the highest frequency, 30 % of the suspect's answers to triggered"
        " images change, and 20 % of those to clean ones."
    )


def test_without_an_attack_the_band_of_clean_images_is_told() -> None:
    found = Frequency(bands=4).inspect(planted(1).suspect, material(attack=None, reference=None), runtime())
    changed = found.measured["suspect"]["clean"]["changed"]
    assert f"without it {100 * max(changed[1:]):.0f} % change" in found.headline


@pytest.mark.parametrize("options", [{"bands": 1}, {"images": 0}])
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^Frequency: .* found "):
        Frequency(**options)
