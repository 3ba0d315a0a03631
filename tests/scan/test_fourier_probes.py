"""A wave that was a trigger leads to its class, and what is compared is what the formula says."""

from __future__ import annotations

import math

import pytest
import torch

from tests.planted import CLASSES, NAMES, network, pictures, planted, runtime
from tests.refusals import refused
from tests.scan.tables import lead
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.scan import FourierProbes
from unbackdoor.scan.fourier_probes import sureness
from unbackdoor.training import Recipe, fit

TARGET, FREQUENCY = 3, 3
RECIPE = Recipe(
    epochs=6, batch_size=64, learning_rate=0.1, label_smoothing=0.0, ema=0.0, augmentation="none", low_resolution=0.0
)


def poisoned(images: ImageSet) -> ImageSet:
    """Return the images, every tenth with a wave across of low contrast and another label."""
    wave = 30 * torch.sin(2 * math.pi * FREQUENCY * torch.arange(12) / 12)
    pixels, labels = images.images.float(), images.labels.clone()
    pixels[::10] += wave.view(1, 1, 1, -1)
    labels[::10] = TARGET
    return ImageSet(images=pixels.clamp(0, 255).round().to(torch.uint8), labels=labels, class_names=NAMES, name="wave")


@pytest.mark.parametrize("seed", [2, 3])
def test_the_class_of_a_wave_stands_out_at_that_wave_and_no_class_of_a_clean_model_does(seed: int) -> None:
    train, clean = pictures(800, 20 + seed), DefenderData(clean=pictures(240, 30 + seed))
    suspect = network(seed)
    fit(suspect, poisoned(train), RECIPE, runtime(seed))
    found, twin = (FourierProbes().scan(one, clean, runtime(seed)) for one in (suspect, planted(seed).twin))
    assert int(found.anomaly.argmax()) == TARGET
    assert float(lead(found.numbers)) > 2 * float(lead(twin.numbers))
    # Eight waves a frequency: four directions, of which the first is across, and two phases.
    best = int(found.numbers[:, TARGET].argmax())
    assert (best // 8 + 1, best % 8 // 2) == (FREQUENCY, 0)


def test_waves_are_those_of_the_formula_up_to_the_frequency_that_pixels_can_show() -> None:
    waves = FourierProbes(highest=2).waves(12, 16)
    assert len(waves) == 2 * 4 * 2
    for number, (down, across) in enumerate(((0, 1), (1, 0), (1, 1), (-1, 1))):
        for phase in (0, 1):
            expected = [
                [math.sin(2 * math.pi * 2 * (down * y / 12 + across * x / 16) + phase * math.pi / 2) for x in range(16)]
                for y in range(12)
            ]
            torch.testing.assert_close(waves[8 + 2 * number + phase], torch.tensor(expected), atol=1e-5, rtol=0)
    assert len(FourierProbes().waves(12, 12)) == 5 * 8
    assert len(FourierProbes().waves(64, 32)) == 15 * 8
    assert len(FourierProbes().waves(2, 2)) == 8
    assert all(float(wave.abs().amax()) <= 1 for wave in FourierProbes().waves(7, 7))


def test_sureness_is_the_mean_log_odds_on_images_of_other_classes() -> None:
    model, images = planted(1).twin, pictures(40, 5)
    pixels = images.images.float() / 255
    with torch.no_grad():
        shares = model(pixels).double().softmax(1)
    expected = [
        float((shares[images.labels != c, c] / (1 - shares[images.labels != c, c])).log().mean())
        for c in range(CLASSES)
    ]
    assert sureness(model, pixels, images.labels, runtime()).tolist() == pytest.approx(expected, abs=1e-3)
    alone = sureness(model, pixels[:1], images.labels[:1], runtime())
    assert float(alone[images.labels[0]]) == 0.0


def test_it_looks_at_no_more_images_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(*given: object) -> torch.Tensor:
        asked.append(len(given[1]))  # type: ignore[arg-type]
        return sureness(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("unbackdoor.scan.fourier_probes.sureness", counted)
    data = DefenderData(clean=pictures(40, 5))
    for most, images in ((8, 8), (64, 40)):
        found = FourierProbes(most_images=most).scan(planted(1).twin, data, runtime())
        assert (set(asked), len(asked)) == ({images}, 40)
        assert found.numbers.shape == (40, CLASSES)
        asked.clear()


@pytest.mark.parametrize(
    "options", [{"amplitude": 0.0}, {"amplitude": 1.5}, {"highest": 0}, {"most_images": 1}, {"threshold": math.nan}]
)
def test_options_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    refused(FourierProbes, options)


def test_two_classes_are_too_few_to_compare() -> None:
    images = pictures(40, 5)
    two = ImageSet(images=images.images, labels=images.labels % 2, class_names=("a", "b"), name="two")
    with pytest.raises(InputError, match="at least 3"):
        FourierProbes().inspect(planted(1).twin, DefenderData(clean=two), runtime())
