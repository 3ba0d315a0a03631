"""The reconstruction error of a decoder, on clean and triggered test images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.planted import SHAPE, network, pictures, runtime
from unbackdoor.attacks import AllToOne, Stamp
from unbackdoor.reconstruction import mean_of, reconstruction
from unbackdoor.secure.decoder import decoder_for, features_shape


def test_the_error_is_the_mean_over_pixels_and_images_as_stored_with_the_trigger_too() -> None:
    model, test = network(0).eval(), pictures(40, 1)
    decoder = decoder_for("6", features_shape(model, "6"), SHAPE, 5).eval()
    mask = torch.zeros(1, *SHAPE[1:])
    mask[:, :3, :3] = 1
    trigger, criterion = Stamp(mask=mask, pattern=torch.full(SHAPE, 0.7013)), AllToOne(target=2)
    measured = reconstruction(model, decoder, test, runtime(), trigger, criterion)

    def expected(images: torch.Tensor) -> tuple[float, float]:
        errors = []
        for image in images:
            pixels = image[None].float() / 255
            with torch.no_grad():
                made = decoder(model.split("6")[0](pixels))
            errors.append(float(((made - pixels) ** 2).mean()))
        return float(np.mean(errors)), 1.96 * float(np.std(errors, ddof=1)) / len(errors) ** 0.5

    others = test.images[test.labels != 2]
    for mean, images in ((measured.clean, test.images), (measured.triggered, trigger.stamp(others))):
        assert mean is not None
        value, half = expected(images)
        assert mean.value == pytest.approx(value, rel=1e-4)
        assert mean.high - mean.value == pytest.approx(half, rel=1e-3)
        assert mean.count == len(images)
    assert measured.to_json()["triggered"]["count"] == 35
    assert reconstruction(model, decoder, test, runtime()).to_json().keys() == {"clean"}


def test_the_interval_of_one_value_is_a_point() -> None:
    one = mean_of(torch.tensor([0.25]))
    assert (one.low, one.value, one.high, one.count) == (0.25, 0.25, 0.25, 1)
