"""Retraining stamps as many images as it says, each with its own trigger and place, and keeps their labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.planted import CLASSES, SHAPE, network, pictures, runtime
from unbackdoor.data import DefenderData
from unbackdoor.purify import FT
from unbackdoor.purify.retraining import FixedPatches, Retraining, _Stamping
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime


class Told:
    """Triggers that tell who they are: the n-th is all n / 100; the epochs that were asked for are kept."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def identity(self) -> str:
        return "told"

    def draw(self, count: int, epoch: int, draws: torch.Generator) -> Tensor:
        self.epochs.append(epoch)
        return torch.arange(1, count + 1).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 100


def batch_of(images: Tensor, progress: float = 0.0) -> Batch:
    count = len(images)
    return Batch(images=images, targets=torch.arange(count) % CLASSES, rows=torch.arange(count), progress=progress)


def stamped(share: float, images: Tensor, seed: int = 0) -> Batch:
    hook = _Stamping(share, Told())
    hook.begin(network(0), Recipe(), runtime())
    return hook.batch(network(0), batch_of(images), torch.Generator().manual_seed(seed))


def test_each_chosen_image_carries_its_own_trigger_at_its_own_place_and_keeps_its_label() -> None:
    images = torch.full((60, *SHAPE), 0.9)
    batch = stamped(0.5, images)
    changed = (batch.images != images).flatten(1).any(1)
    assert 15 < int(changed.sum()) < 45
    places = set()
    for number, image in enumerate(batch.images[changed], 1):
        differs = (image != 0.9).all(0)
        rows, columns = differs.nonzero(as_tuple=True)
        assert (int(differs.sum()), int(rows.max() - rows.min()), int(columns.max() - columns.min())) == (4, 1, 1)
        torch.testing.assert_close(image[:, differs], torch.full((3, 4), number / 100))
        places.add((int(rows.min()), int(columns.min())))
    assert len(places) > 10
    assert torch.equal(batch.targets, torch.arange(60) % CLASSES)
    assert float(images.min()) == float(images.max())


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_the_share_of_stamped_images_is_the_probability(share: float) -> None:
    images = torch.full((400, *SHAPE), 0.9)
    count = sum(int((stamped(share, images, seed).images != images).flatten(1).any(1).sum()) for seed in range(5))
    assert abs(count / 2000 - share) < 0.012 + 0.02 * (share < 1) * (share > 0.1)
    assert count


def test_sources_are_told_the_epoch_of_the_schedule() -> None:
    told = Told()
    retraining = Retraining(epochs=3, batch_size=10, stamped=1.0)
    retraining.fit(network(0), pictures(40, 3), told, runtime(), None)
    assert told.epochs == [0] * 4 + [1] * 4 + [2] * 4


def test_a_shorter_training_goes_through_all_epochs() -> None:
    told = Told()
    limited = Runtime(device="cpu", precision="fp32", threads=1, budget=1e-6)
    Retraining(epochs=6, batch_size=10, stamped=1.0).fit(network(0), pictures(60, 3), told, limited, None)
    assert told.epochs[-6:] == [0, 1, 2, 3, 4, 5]


def test_fixed_patches_take_turns_by_chance() -> None:
    patches = torch.rand(3, 3, 2, 2)
    drawn = FixedPatches(patches).draw(300, 0, torch.Generator().manual_seed(0))
    counts = torch.tensor([int((drawn == patch).flatten(1).all(1).sum()) for patch in patches])
    assert counts.sum() == 300
    assert counts.min() > 70
    assert FixedPatches(patches).identity() != FixedPatches(patches + 0.1).identity()


def test_without_stamps_it_is_plain_fine_tuning_at_a_constant_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Stamping, "batch", lambda self, model, batch, generator: batch)
    model, clean = network(0), pictures(24, 3)
    Retraining(epochs=1, batch_size=24, learning_rate=0.01).fit(model, clean, Told(), runtime(), None)
    # In one step neither decay nor schedule of plain fine-tuning shows but for the decay itself.
    plain, _ = FT(epochs=1, batch_size=24, learning_rate=0.01, augmentation="none").purify(
        network(0), DefenderData(clean=clean), runtime()
    )
    for (name, one), other in zip(model.named_parameters(), plain.parameters()):
        torch.testing.assert_close(one, other + 0.01 * 5e-4 * dict(network(0).named_parameters())[name])


def test_another_share_or_source_is_another_run() -> None:
    assert _Stamping(0.1, Told()).identity() != _Stamping(0.2, Told()).identity()
    one, other = (FixedPatches(torch.full((1, 3, 2, 2), value)) for value in (0.1, 0.2))
    assert _Stamping(0.1, one).identity() != _Stamping(0.1, other).identity()


def test_retraining_is_deterministic() -> None:
    models = [network(0), network(0)]
    for model in models:
        patches = FixedPatches(torch.full((1, 3, 2, 2), 0.3))
        replace(Retraining(), epochs=2, batch_size=12, stamped=0.5).fit(
            model, pictures(24, 3), patches, runtime(), None
        )
    assert same_state(state_of(models[0]), state_of(models[1]))
