"""Norms of gradients in fine-tuning, against plain autograd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.inspect.known import material
from tests.planted import pictures, planted, runtime
from tests.training.test_resume import Stops
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.inspect import Gradients
from unbackdoor.inspect.gradients import GradientNorms, gradient_norms
from unbackdoor.models import Network
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Runtime

LAYERS = ("body.0", "body.3", "body.6")
RECIPE = fine_tuning(2, 16, 0.01, "none", "constant", 0.0)


def measured(
    model: Network, samples: ImageSet, where: Runtime | None = None, resume: Path | None = None
) -> GradientNorms:
    return gradient_norms(model, samples, LAYERS, RECIPE, where or runtime(), resume, "test")


def test_the_first_norms_are_those_of_plain_autograd() -> None:
    suspect, samples = planted(1).suspect, pictures(16, 3)
    before = state_of(suspect)
    found = measured(suspect, samples)
    assert same_state(before, state_of(suspect))
    assert (found.total.shape, found.activeness.shape) == ((2,), (2, 3))
    model = planted(1).suspect
    model.train()
    try:
        loss = F.cross_entropy(model(samples.images.float() / 255), samples.labels)
        gradients = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))
    finally:
        model.eval()
        model.load_state_dict(before)
    total = sum(float(gradient.square().sum()) for gradient in gradients.values()) ** 0.5
    assert float(found.total[0]) == pytest.approx(total, rel=1e-4)
    for number, layer in enumerate(LAYERS):
        neurons = [float(row.square().sum()) ** 0.5 for row in gradients[f"{layer}.weight"]]
        assert float(found.activeness[0, number]) == pytest.approx(sum(neurons) / len(neurons), rel=1e-4)


def test_steps_are_taken_between_the_norms() -> None:
    suspect, samples = planted(1).suspect, pictures(16, 3)
    steps = measured(suspect, samples).total
    still = gradient_norms(
        suspect, samples, LAYERS, replace(RECIPE, learning_rate=1e-12), runtime(), None, "test"
    ).total
    assert float(steps[0]) == pytest.approx(float(still[0]), rel=1e-4)
    assert float(still[1]) == pytest.approx(float(still[0]), rel=1e-3)
    assert abs(float(steps[1]) / float(steps[0]) - 1) > 1e-3


def test_an_interrupted_measurement_goes_on_with_its_rows(tmp_path: Path) -> None:
    suspect, samples, path = planted(1).suspect, pictures(32, 3), tmp_path / "resume.pt"
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=Stops(3))
    with pytest.raises(KeyboardInterrupt):
        measured(suspect, samples, stopping, path)
    again, whole = measured(suspect, samples, resume=path), measured(suspect, samples)
    assert torch.equal(again.total, whole.total)
    assert torch.equal(again.activeness, whole.activeness)
    assert torch.equal(measured(suspect, samples, resume=path).total, whole.total), "a finished one is not repeated"


def test_the_inspection_tells_the_norms_and_how_many_times_the_reference_s_they_are(tmp_path: Path) -> None:
    look = Gradients(epochs=2, batch_size=60)
    found = look.inspect(planted(1).suspect, material(), runtime(), tmp_path / "resume.pt")
    recipe = fine_tuning(2, 60, 0.01, "none", "constant", 0.0)
    suspect, twin = (
        gradient_norms(model, material().clean, (), recipe, runtime(), None, "test").total
        for model in (planted(1).suspect, planted(1).twin)
    )
    assert found.measured["suspect"]["gradient_norms"] == suspect.tolist()
    assert len(suspect) == 8
    assert found.measured["gradient_ratio"]["value"] == pytest.approx(
        float((suspect / twin).log().mean().exp()), rel=1e-5
    )
    assert f"{found.measured['gradient_ratio']['value']:.2f} times the reference's" in found.headline
    assert len(list(tmp_path.iterdir())) == 2, "a state for each model"
    alone = look.inspect(planted(1).suspect, material(reference=None), runtime())
    assert alone.measured["gradient_ratio"] is None
    with pytest.raises(InputError, match="1 epoch or more, found 0"):
        Gradients(epochs=0)
