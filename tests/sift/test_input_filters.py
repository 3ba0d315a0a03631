"""Filters of inputs: scores in closed form, an image's score in any company, and triggered images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.planted import planted, runtime
from tests.sift.spread import FEATURES, SHAPE, TARGET, reader, spread
from tests.sift.test_strip import TRIGGER, backdoored, lit
from unbackdoor.errors import InputError, ResumeError
from unbackdoor.models import Network
from unbackdoor.sift import INPUT_FILTERS, InputFilter, ScaleUp, TeCo, input_filter
from unbackdoor.sift import teco as module
from unbackdoor.sift.corruptions import KINDS, Draws
from unbackdoor.testing.samples import hooks_on, same_state, state_of
from unbackdoor.training import Runtime

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
    seen: list[int] = []

    def dark(images: torch.Tensor, severity: int, draws: Draws) -> torch.Tensor:
        seen.append(severity)
        return images - (severity >= 3) * 1.0

    def nothing(images: torch.Tensor, severity: int, draws: Draws) -> torch.Tensor:
        return images

    # The lit pixel goes dark at the third severity: the class goes with it. The other kind does nothing.
    monkeypatch.setattr(module, "KINDS", {"dark": dark, "nothing": nothing})
    rows = spread(lit(), share=1.0).rows
    chosen = rows.images[(rows.labels == TARGET).nonzero().squeeze(1)][:8]
    scores = TeCo().score(reader(backdoored()), chosen, runtime())
    first = torch.tensor([3.0, 6.0])
    assert scores.tolist() == pytest.approx([float(first.std(correction=0))] * 8)
    assert seen == [1, 2, 3], "images whose answer has changed are done"


def test_severities_are_those_of_a_plain_loop_over_images() -> None:
    models = planted(0)
    images = models.test.images[:6]
    found = TeCo().score(models.suspect, images, runtime())
    for row in range(6):
        image = images[row : row + 1]
        with torch.no_grad():
            first = int(models.suspect(image.float() / 255).argmax())
            ends = []
            for name, kind in KINDS.items():
                draws = Draws.of(image, name, runtime())
                changed = (kind(image.float() / 255, severity, draws).clamp(0, 1) for severity in range(1, 6))
                others = [int(models.suspect(one).argmax()) != first for one in changed]
                ends.append(others.index(True) + 1 if any(others) else 6)
        assert float(found[row]) == pytest.approx(float(torch.tensor(ends).float().std(correction=0)), abs=1e-6)


class Stopped(InputFilter):
    """Says how bright an image is, and is interrupted at the second batch."""

    seen = 0

    def inspect(self, model: Network, images: torch.Tensor, runtime: Runtime) -> torch.Tensor:
        type(self).seen += 1
        if type(self).seen == 2:
            raise KeyboardInterrupt
        return images.float().flatten(1).mean(1)


def test_an_interruption_loses_no_finished_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_filter, "BATCH", 16)
    monkeypatch.setattr(Stopped, "seen", 0)
    models, resume = planted(0), tmp_path / "resume.pt"
    images = models.test.images[:40]
    with pytest.raises(KeyboardInterrupt):
        Stopped().score(models.suspect, images, runtime(), resume)
    for other in ((models.suspect, images + 1, runtime()), (models.suspect, images, runtime(seed=1))):
        with pytest.raises(ResumeError, match="other settings or data"):
            Stopped().score(*other, resume)
    found = Stopped().score(models.suspect, images, runtime(), resume)
    assert torch.equal(found, images.float().flatten(1).mean(1))
    assert Stopped.seen == 2 + 2, "the first batch was scored again"
    assert torch.equal(Stopped().score(models.suspect, images, runtime(), resume), found)
    assert Stopped.seen == 2 + 2, "finished scores were counted again"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sieve", FILTERS, ids=lambda one: type(one).__name__)
def test_scores_on_a_gpu_are_those_of_a_processor(sieve: InputFilter) -> None:
    models = planted(0)
    images = models.test.images[:40]
    found = sieve.score(models.suspect, images, Runtime(device="cuda", precision="fp32", seed=0))
    expected = sieve.score(models.suspect, images, Runtime(device="cpu", precision="fp32", seed=0))
    # An answer may hang on rounding.
    assert float((found - expected).abs().lt(1e-6).float().mean()) > 0.9


def test_filters_are_registered_and_options_are_checked() -> None:
    assert set(INPUT_FILTERS) >= {"ScaleUp", "TeCo"}
    with pytest.raises(InputError, match="ScaleUp: factors"):
        ScaleUp(factors=(1.0,))
    with pytest.raises(InputError, match="ScaleUp: factors"):
        ScaleUp(factors=())
