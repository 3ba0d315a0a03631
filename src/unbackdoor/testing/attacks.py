"""What every attack must do."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.attacks import CLEAN, POISON, Attack, FittedAttack, load_attack, save_attack
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.testing.samples import SHAPES, sample_images, sample_network, sample_runtime
from unbackdoor.training import Batch, Recipe


def check_attack(attack: Attack) -> None:
    """Check an attack on colour, grey and oblong images.

    Nothing is mutated; the same seed gives the same poison; untouched rows stay as they were; triggered rows have
    changed wherever the trigger changes them (a trigger of training may differ from that of testing); poisoned rows
    carry the label that the criterion wants; the trigger does the same to an image in any company, stays in [0, 1],
    changes something, and comes back from disk the same. A shape may be refused with an InputError.

    Raises:
        AssertionError: naming what is violated.
    """
    supported = 0
    for shape in SHAPES:
        train = sample_images(shape)
        before = train.digest()
        try:
            fitted = _prepare(attack, train, 0)
        except InputError:
            continue
        supported += 1
        name = f"{type(attack).__name__} on {shape}"
        assert train.digest() == before, f"{name}: the training set it was given has changed"
        again = _prepare(attack, train, 0)
        assert fitted.train.digest() == again.train.digest(), f"{name}: the same seed gave other data"
        assert torch.equal(fitted.kinds, again.kinds), f"{name}: the same seed poisoned other rows"
        if fitted.hook is not None:
            _check_batches(name, train, fitted, again)
        _check_rows(name, train, fitted)
        _check_trigger(name, train, fitted)
        stamps = [one.trigger.stamp(train.images) for one in (fitted, again)]
        assert torch.equal(*stamps), f"{name}: the same seed gave another trigger"
        _check_triggered_rows(name, train, fitted)
        _check_disk(name, train, fitted)
    assert supported, f"{type(attack).__name__} supports none of {SHAPES}"


def _prepare(attack: Attack, train: ImageSet, seed: int) -> FittedAttack:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        return attack.prepare(train, lambda: sample_network(train.shape), sample_runtime(seed), work)


def _check_rows(name: str, train: ImageSet, fitted: FittedAttack) -> None:
    clean, poison = fitted.kinds == CLEAN, fitted.kinds == POISON
    assert bool(poison.any()) or fitted.hook is not None, f"{name}: nothing is poisoned"
    assert torch.equal(fitted.original_labels, train.labels), f"{name}: the original labels are not kept"
    assert torch.equal(fitted.train.images[clean], train.images[clean]), f"{name}: untouched images have changed"
    assert torch.equal(fitted.train.labels[~poison], train.labels[~poison]), f"{name}: true labels have changed"
    wanted = fitted.criterion.wanted(train.labels[poison])
    assert torch.equal(fitted.train.labels[poison], wanted), f"{name}: poisoned labels are not the wanted ones"


def _check_trigger(name: str, train: ImageSet, fitted: FittedAttack) -> None:
    images = train.images[:8].float() / 255
    with torch.no_grad():
        triggered: Tensor = fitted.trigger(images)
    assert triggered.shape == images.shape, f"{name}: the trigger changes the shape"
    assert float(triggered.min()) >= 0, f"{name}: the trigger leaves [0, 1]"
    assert float(triggered.max()) <= 1, f"{name}: the trigger leaves [0, 1]"
    assert not torch.equal(triggered, images), f"{name}: the trigger changes nothing"
    with torch.no_grad():
        assert torch.equal(fitted.trigger(images), triggered), f"{name}: the trigger is not deterministic"
        alone = torch.cat([fitted.trigger(image[None]) for image in images])
    assert torch.allclose(alone, triggered, atol=1e-6), f"{name}: an image's trigger depends on its company"


def _check_triggered_rows(name: str, train: ImageSet, fitted: FittedAttack) -> None:
    rows = (fitted.kinds != CLEAN).nonzero().squeeze(1)
    originals = train.images[rows]
    unchanged = (fitted.train.images[rows] == originals).flatten(1).all(1)
    idle = (fitted.trigger.stamp(originals) == originals).flatten(1).all(1)
    assert bool((idle | ~unchanged).all()), f"{name}: rows that are called poisoned do not carry a trigger"


def _check_batches(name: str, train: ImageSet, fitted: FittedAttack, again: FittedAttack) -> None:
    """Check what a hook does to a batch before anything is learned."""
    made = []
    given = Batch(images=train.images.float() / 255, targets=train.labels, rows=torch.arange(len(train)))
    for one in (fitted, again):
        model = sample_network(train.shape)
        assert one.hook is not None
        one.hook.begin(model, Recipe(), sample_runtime(0))
        before = given.images.clone()
        made.append(one.hook.batch(model, given, torch.Generator().manual_seed(0)))
        assert torch.equal(given.images, before), f"{name}: the batch it was given has changed"
    first, second = made
    assert first.images.shape == given.images.shape, f"{name}: the hook changes the shape of a batch"
    assert float(first.images.detach().min()) >= 0, f"{name}: a batch leaves [0, 1]"
    assert float(first.images.detach().max()) <= 1, f"{name}: a batch leaves [0, 1]"
    same = torch.equal(first.images, second.images) and torch.equal(first.targets, second.targets)
    assert same, f"{name}: the same seed gave other batches"
    changed = first.targets != given.targets
    wanted = fitted.criterion.wanted(given.targets)
    assert torch.equal(first.targets[changed], wanted[changed]), f"{name}: a batch has labels that nobody wants"


def _check_disk(name: str, train: ImageSet, fitted: FittedAttack) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attack.safetensors"
        save_attack(path, fitted, {"name": name})
        saved = load_attack(path)
    assert torch.equal(saved.trigger.stamp(train.images), fitted.trigger.stamp(train.images)), (
        f"{name}: the trigger from disk is another"
    )
    assert saved.criterion == fitted.criterion, f"{name}: the criterion from disk is another"
    assert torch.equal(saved.kinds, fitted.kinds), f"{name}: the poisoned rows from disk are others"
