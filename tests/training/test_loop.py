"""The training loop."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.testing.samples import same_state, sample_images, sample_network, state_of
from unbackdoor.training import Recipe, Runtime, Silent, fit

RECIPE = Recipe(epochs=4, batch_size=12, learning_rate=0.01)
RUNTIME = Runtime(device="cpu", precision="fp32", threads=1)


class Stops(Silent):
    @contextmanager
    def bar(self, description, total):  # type: ignore[no-untyped-def]
        steps = 0

        def advance() -> None:
            nonlocal steps
            steps += 1
            if steps == 10:
                raise KeyboardInterrupt

        yield advance


@pytest.fixture
def images() -> ImageSet:
    return sample_images((3, 16, 16))


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(optimizer: str, images: ImageSet, tmp_path: Path) -> None:
    recipe = Recipe(epochs=4, batch_size=12, learning_rate=0.01, optimizer=optimizer)  # type: ignore[arg-type]
    whole, pieces = sample_network(images.shape), sample_network(images.shape)
    fit(whole, images, recipe, RUNTIME)
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=Stops())
    with pytest.raises(KeyboardInterrupt):
        fit(pieces, images, recipe, stopping, resume=tmp_path / "r")
    again = sample_network(images.shape)
    fit(again, images, recipe, RUNTIME, resume=tmp_path / "r")
    assert same_state(state_of(whole), state_of(again))
    assert not (tmp_path / "r").exists()


def test_another_runs_state_is_refused(images: ImageSet, tmp_path: Path) -> None:
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=Stops())
    with pytest.raises(KeyboardInterrupt):
        fit(sample_network(images.shape), images, RECIPE, stopping, resume=tmp_path / "r")
    other = Runtime(device="cpu", precision="fp32", threads=1, seed=1)
    with pytest.raises(InputError, match=r"another run|interrupted run"):
        fit(sample_network(images.shape), images, RECIPE, other, resume=tmp_path / "r")


def test_damaged_state_is_refused(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        fit(sample_network(images.shape), images, RECIPE, RUNTIME, resume=tmp_path / "r")


def test_the_seed_decides(images: ImageSet) -> None:
    def weights(seed: int) -> torch.Tensor:
        network = sample_network(images.shape)
        fit(network, images, RECIPE, Runtime(device="cpu", precision="fp32", threads=1, seed=seed))
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
