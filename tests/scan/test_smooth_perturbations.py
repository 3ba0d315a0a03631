"""A smooth trigger is the class that one smooth change leads to best."""

from __future__ import annotations

import pytest
import torch

from tests.planted import CLASSES, NAMES, network, pictures, planted, runtime
from tests.refusals import refused
from tests.scan.tables import lead
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.scan import SmoothPerturbations, UniversalPerturbations
from unbackdoor.scan.universal import norms, universal_perturbations
from unbackdoor.spectrum import smoothed
from unbackdoor.training import Recipe, fit

TARGET = 3
RECIPE = Recipe(
    epochs=6, batch_size=64, learning_rate=0.1, label_smoothing=0.0, ema=0.0, augmentation="none", low_resolution=0.0
)


def poisoned(images: ImageSet) -> ImageSet:
    """Return the images, every tenth with a smooth wave of low contrast and another label."""
    wave = 20 * torch.cos(torch.pi * (torch.arange(12) + 0.5) * 3 / 12)
    pixels, labels = images.images.float(), images.labels.clone()
    pixels[::10] += wave.view(1, 1, 1, -1)
    labels[::10] = TARGET
    return ImageSet(
        images=pixels.clamp(0, 255).round().to(torch.uint8), labels=labels, class_names=NAMES, name="smooth"
    )


def test_a_smooth_trigger_stands_out_and_no_class_of_a_clean_model_does() -> None:
    train, clean = pictures(800, 20), DefenderData(clean=pictures(240, 22))
    suspect = network(2)
    fit(suspect, poisoned(train), RECIPE, runtime(2))
    found, twin = (
        SmoothPerturbations(frequencies=4).scan(one, clean, runtime(2)) for one in (suspect, planted(2).twin)
    )
    assert int(found.anomaly.argmax()) == TARGET
    assert float(lead(found.numbers)) > 2 * float(lead(twin.numbers))
    assert "smooth change" in found.reason


def test_changes_have_the_lowest_frequencies_alone_and_stay_within_their_radius() -> None:
    images = pictures(40, 3).images
    found = universal_perturbations(planted(1).suspect, images, CLASSES, 1.0, runtime(), 3, 8, None, 4)
    torch.testing.assert_close(smoothed(found, 4), found, rtol=1e-4, atol=1e-5)
    assert 0 < float(norms(found).max()) <= 1 + 1e-5
    # All frequencies are no limit.
    free, all_of_them = (
        universal_perturbations(planted(1).suspect, images, CLASSES, 1.0, runtime(), 2, 8, None, one)
        for one in (None, 12)
    )
    torch.testing.assert_close(all_of_them, free, rtol=1e-3, atol=1e-4)


def test_among_many_classes_those_are_searched_to_which_smooth_changes_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def search(*given: object) -> torch.Tensor:
        asked.append(given[-1])
        return universal_perturbations(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("unbackdoor.scan.screening.universal_perturbations", search)
    data = DefenderData(clean=pictures(40, 5))
    few = {"steps": 1, "most_classes": 3}
    for scanner in (SmoothPerturbations(frequencies=5, **few), UniversalPerturbations(**few)):
        assert scanner.scan(planted(1).twin, data, runtime()).evidence["searched"] == 3
    assert asked == [5, None]


def test_a_number_of_frequencies_that_is_none_is_refused() -> None:
    refused(SmoothPerturbations, {"frequencies": 0})
