"""What every method that trains on untrusted data must do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.secure import SecureTrainer, Trained
from unbackdoor.testing.canary import CanaryData
from unbackdoor.testing.samples import (
    SHAPES,
    hooks_on,
    same_state,
    sample_images,
    sample_network,
    sample_runtime,
    state_of,
)
from unbackdoor.training import Runtime, Silent

FEW = 24
"""Clean samples; half as many as there are untrusted ones."""


def check_secure_trainer(trainer: SecureTrainer) -> None:
    """Check a secure training on colour, grey and oblong images; give it short schedules.

    The same seed gives the same weights, of the network and of its parts; so does a run that was interrupted, early or
    late, and went on; the result is in evaluation mode, answers, has no hooks left and is described as the network that
    was asked for; data that it was given stay as they were; nothing but the defender's data is touched. A shape may be
    refused with an InputError.

    Raises:
        AssertionError: naming what is violated.
        OracleError: it reached for what no defender has.
    """
    supported = 0
    for shape in SHAPES:
        name = f"{type(trainer).__name__} on {shape}"
        untrusted, clean = sample_images(shape), sample_images(shape, FEW)
        before = untrusted.digest(), clean.digest()
        data = CanaryData(untrusted=untrusted, clean=clean)
        counting = _Stopping()
        try:
            trained = _train(trainer, data, replace(sample_runtime(), progress=counting))
        except InputError:
            continue
        supported += 1
        assert (untrusted.digest(), clean.digest()) == before, f"{name}: the data that it was given have changed"
        _check_result(name, trained, untrusted.images)
        again = _train(trainer, data, sample_runtime())
        assert same_state(_state(trained), _state(again)), f"{name}: the same seed gave other weights"
        for share in (0.25, 0.75):
            resumed = _interrupted(trainer, data, int(share * counting.steps))
            assert same_state(_state(trained), _state(resumed)), f"{name}: an interrupted run ended elsewhere"
    assert supported, f"{type(trainer).__name__} supports none of {SHAPES}"


def _train(trainer: SecureTrainer, data: CanaryData, runtime: Runtime, resume: Path | None = None) -> Trained:
    assert data.untrusted is not None
    shape = data.untrusted.shape
    return trainer.train(lambda: sample_network(shape), data, runtime, resume)


def _check_result(name: str, trained: Trained, images: Tensor) -> None:
    for module in (trained.network, *trained.parts.values()):
        assert hooks_on(module) == 0, f"{name}: hooks are left on the result"
        assert not any(one.training for one in module.modules()), f"{name}: the result is not in evaluation mode"
    shape = (images.shape[1], images.shape[2], images.shape[3])
    expected = sample_network(shape)
    assert trained.network.description == expected.description, f"{name}: it is described as another network"
    same = trained.network.state_dict().keys() == expected.state_dict().keys()
    assert same, f"{name}: its weights are not those of the network described"
    with torch.no_grad():
        logits = trained.network(images.float() / 255)
    assert logits.shape == (len(images), expected.classes), f"{name}: it does not answer with one logit a class"
    assert bool(logits.isfinite().all()), f"{name}: its answers are no numbers"


def _state(trained: Trained) -> dict[str, Tensor]:
    """Return copies of all weights, those of the parts under their names."""
    parts = {f"{part}: {name}": value for part, one in trained.parts.items() for name, value in state_of(one).items()}
    return {**state_of(trained.network), **parts}


def _interrupted(trainer: SecureTrainer, data: CanaryData, after: int) -> Trained:
    """Return the result of a run that was interrupted after so many steps, and went on."""
    with tempfile.TemporaryDirectory() as folder:
        resume = Path(folder) / "resume.pt"
        with suppress(_Stop):
            _train(trainer, data, replace(sample_runtime(), progress=_Stopping(after)), resume)
        return _train(trainer, data, sample_runtime(), resume)


class _Stop(BaseException):
    """No Exception, as an interruption from the keyboard is none."""


class _Stopping(Silent):
    """Counts the steps of all bars, and interrupts after so many.

    Attributes:
        steps: that were done.
    """

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.steps = 0

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        yield self._advance

    def _advance(self) -> None:
        self.steps += 1
        if self.steps == self.after:
            raise _Stop
