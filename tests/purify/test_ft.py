"""FT is plain fine-tuning: SGD on cross-entropy along half a cosine."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.planted import SHAPE, network, pictures, planted, runtime
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.purify import FT, Purifier
from unbackdoor.testing.samples import state_of
from unbackdoor.training import History, Runtime


@dataclass(frozen=True, kw_only=True)
class Nothing(Purifier):
    """Does nothing: what every figure of a purifier is compared with."""

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        return History(epochs=0)


def sides_seen(purifier: Purifier) -> set[tuple[int, ...]]:
    """Return the shapes of the images that a model sees in its repair."""
    model, seen = network(0), set()
    model.normalize.register_forward_pre_hook(lambda module, images: seen.add(tuple(images[0].shape[1:])))
    purifier.purify(model, DefenderData(clean=pictures(24, 3)), runtime())
    return seen


def reference(suspect: Network, steps: int) -> nn.Module:
    """Fine-tune on all images at once, as a plain loop."""
    model, clean = copy.deepcopy(suspect).train(), pictures(48, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        F.cross_entropy(model(clean.images.float() / 255), clean.labels).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("epochs", [1, 4])
def test_fine_tuning_equals_a_plain_loop(epochs: int) -> None:
    suspect = network(0)
    method = FT(epochs=epochs, batch_size=48, learning_rate=0.05, augmentation="none")
    repaired, history = method.purify(suspect, DefenderData(clean=pictures(48, 3)), runtime())
    assert history.epochs == len(history.loss) == epochs
    expected = state_of(reference(suspect, epochs))
    for name, value in state_of(repaired).items():
        torch.testing.assert_close(
            value, expected[name], atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_all_epochs_see_whole_images() -> None:
    assert sides_seen(FT(epochs=2)) == {SHAPE}


def test_defaults_are_those_of_the_benchmark() -> None:
    assert FT() == FT(epochs=100, batch_size=256, learning_rate=0.01, augmentation="crop-flip")


def test_the_model_it_is_given_stays_and_keeps_its_backdoor() -> None:
    models = planted(1)
    before = state_of(models.suspect)
    repaired, _ = FT(epochs=2, batch_size=64, augmentation="none").purify(models.suspect, models.data, runtime())
    assert all(torch.equal(value, before[name]) for name, value in state_of(models.suspect).items())
    assert any(not torch.equal(value, before[name]) for name, value in state_of(repaired).items())
    after = evaluate(repaired, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
    assert after.acc.value > 0.97
    assert after.asr is not None
    assert after.asr.value > 0.5, "tuning on clean samples alone takes the backdoor out: it proves nothing of others"


def test_frozen_parameters_of_the_suspect_are_tuned_too() -> None:
    suspect = network(0).requires_grad_(False)
    repaired, _ = FT(epochs=1, batch_size=48).purify(suspect, DefenderData(clean=pictures(48, 3)), runtime())
    assert not any(parameter.requires_grad for parameter in suspect.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(suspect.parameters(), repaired.parameters())]
    assert all(moved)


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"FT needs clean samples.*--clean"):
        FT().purify(network(0), DefenderData(untrusted=pictures(24, 3)), runtime())
