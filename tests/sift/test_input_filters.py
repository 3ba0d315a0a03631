"""Filters of inputs: scores in closed form, an image's score in any company, and triggered images."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.planted import planted, runtime
from tests.sift.spread import FEATURES, SHAPE, TARGET, reader, spread
from tests.sift.test_strip import TRIGGER, backdoored, lit
from unbackdoor.errors import InputError
from unbackdoor.sift import INPUT_FILTERS, InputFilter, ScaleUp, TeCo
from unbackdoor.sift import teco as module
from unbackdoor.testing.samples import hooks_on, same_state, state_of

FILTERS = [ScaleUp(), TeCo()]


@pytest.mark.parametrize("sieve", FILTERS, ids=lambda one: type(one).__name__)
def test_an_image_has_the_same_score_in_any_company_and_the_model_stays(sieve: InputFilter) -> None:
    models = planted(0)
    images = models.test.images[:40]
    before = state_of(models.suspect)
    together = sieve.score(models.suspect, images, runtime())
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sieve.score(models.suspect, images[order], runtime()), together[order])
    assert torch.equal(sieve.score(models.suspect, images[:1], runtime()), together[:1])
    assert len(sieve.score(models.suspect, images[:0], runtime())) == 0
    assert same_state(before, state_of(models.suspect))
    assert hooks_on(models.suspect) == 0


@pytest.mark.parametrize("sieve", FILTERS, ids=lambda one: type(one).__name__)
def test_images_of_another_size_are_refused(sieve: InputFilter) -> None:
    with pytest.raises(InputError, match="needs uint8 images of the model's size"):
        sieve.score(reader(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), runtime())
    with pytest.raises(InputError, match="needs uint8 images"):
        sieve.score(reader(), torch.zeros(2, *SHAPE), runtime())


def test_scaled_answers_are_counted_as_a_plain_loop_counts_them() -> None:
    models = planted(0)
    images = models.test.images[:30]
    found = ScaleUp(factors=(2.0, 3.0)).score(models.suspect, images, runtime())
    for row, image in enumerate(images):
        pixels = image[None].float() / 255
        with torch.no_grad():
            first, *others = [int(models.suspect((pixels * s).clamp(max=1)).argmax()) for s in (1, 2, 3)]
        assert float(found[row]) == pytest.approx(sum(other == first for other in others) / 2)


def test_a_white_trigger_keeps_its_class_under_scaling_and_the_same_images_without_it_do_not() -> None:
    plain = spread(torch.zeros(FEATURES)).plain
    others = plain.subset((plain.labels != TARGET).nonzero().squeeze(1))
    stamped = others.images.flatten(1).clone()
    stamped[:, TRIGGER] = 255
    model = reader(backdoored())
    assert float(ScaleUp().score(model, stamped.view_as(others.images), runtime()).mean()) > 0.95
    assert float(ScaleUp().score(model, others.images, runtime()).mean()) < 0.2


def test_the_deviation_is_that_of_the_first_severities_at_which_answers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def dark(images: torch.Tensor, strength: float, noise: torch.Tensor) -> torch.Tensor:
        return images - strength

    def nothing(images: torch.Tensor, strength: float, noise: torch.Tensor) -> torch.Tensor:
        return images

    # The lit pixel goes dark at the third severity: the class goes with it. The other kind does nothing.
    monkeypatch.setattr(module, "KINDS", ((dark, (0.01, 0.02, 1.0, 1.0, 1.0)), (nothing, (0.0,) * 5)))
    rows = spread(lit(), share=1.0).rows
    chosen = rows.images[(rows.labels == TARGET).nonzero().squeeze(1)][:8]
    scores = TeCo().score(reader(backdoored()), chosen, runtime())
    first = torch.tensor([3.0, 6.0])
    assert scores.tolist() == pytest.approx([float(first.std(correction=0))] * 8)


@pytest.mark.parametrize(("kind", "strengths"), module.KINDS, ids=lambda one: getattr(one, "__name__", ""))
def test_corruptions_grow_with_their_severity(kind: module.Corruption, strengths: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bilinear")
    noise = torch.randn(images.shape, generator=generator)
    changes = [float((kind(images, strength, noise).clamp(0, 1) - images).abs().mean()) for strength in strengths]
    assert len(strengths) == module.SEVERITIES
    # Shrinking to a side that does not divide the whole one is a little uneven.
    assert all(later > 0.8 * earlier for earlier, later in itertools.pairwise(changes))
    assert 0 < 1.3 * changes[0] < changes[-1] < 0.5


def test_blur_is_a_gaussian_and_impulses_have_their_share() -> None:
    point = torch.zeros(1, 1, 15, 15)
    point[0, 0, 7, 7] = 1
    blurred = module.blur(point, 1.0, point)
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(blurred[0, 0, 7, 8] / blurred[0, 0, 7, 7]) == pytest.approx(2.718281828 ** (-0.5), rel=1e-4)
    grey = torch.full((1, 1, 200, 200), 0.5)
    hit = module.impulse_noise(grey, 0.1, torch.randn(grey.shape, generator=torch.Generator().manual_seed(0)))
    assert float((hit == 0).float().mean()) == pytest.approx(0.05, abs=0.01)
    assert float((hit == 1).float().mean()) == pytest.approx(0.05, abs=0.01)


def test_filters_are_registered_and_options_are_checked() -> None:
    assert set(INPUT_FILTERS) >= {"ScaleUp", "TeCo"}
    with pytest.raises(InputError, match="ScaleUp: factors"):
        ScaleUp(factors=(1.0,))
    with pytest.raises(InputError, match="ScaleUp: factors"):
        ScaleUp(factors=())
