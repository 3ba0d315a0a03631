"""What every defence and every inspection must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from unbackdoor.errors import InputError
from unbackdoor.inspect import Inspection, Material
from unbackdoor.models import Network
from unbackdoor.purify import Purifier
from unbackdoor.scan import Finding, Scanner
from unbackdoor.sift import InputFilter, Sifter, Suspicion
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


def check_purifier(purifier: Purifier) -> None:
    """Check a purifier on colour, grey and oblong images; give it short schedules.

    The model that it is given stays as it was; no hook is left behind; the same seed gives the same weights; the result
    is in evaluation mode and answers; data that it was given stay as they were; nothing but the defender's data is
    touched. A shape may be refused with an InputError.

    Raises:
        AssertionError: naming what is violated.
        OracleError: it reached for what no defender has.
    """

    def check(name: str, model: Network, data: CanaryData) -> None:
        repaired, _ = purifier.purify(model, data, sample_runtime())
        again, _ = purifier.purify(model, data, sample_runtime())
        assert repaired is not model, f"{name}: it returned the model that it was given"
        assert hooks_on(repaired) == 0, f"{name}: hooks are left on the result"
        assert not repaired.training, f"{name}: the result is not in evaluation mode"
        assert same_state(state_of(repaired), state_of(again)), f"{name}: the same seed gave other weights"
        shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in repaired.parameters()}
        assert not shared, f"{name}: the result shares weights with the model that it was given"
        assert data.clean is not None
        with torch.no_grad():
            answers = repaired(data.clean.images[:4].float() / 255)
        right = answers.shape == (4, data.clean.classes) and bool(answers.isfinite().all())
        assert right, f"{name}: the result does not answer with a number for each class"

    _over_shapes(type(purifier).__name__, check)


def check_scanner(scanner: Scanner) -> None:
    """Check a scanner on colour, grey and oblong images; give it short schedules.

    The model that it is given stays as it was; no hook is left behind; the same seed gives the same finding, in
    whatever order the clean samples come; there is an anomaly for every class; distributions of triggers, if there are
    any, are of different classes and draw triggers in [0, 1] that fit the images; nothing but the defender's data is
    touched. A shape may be refused with an InputError.

    Raises:
        AssertionError: naming what is violated.
        OracleError: it reached for what no defender has.
    """

    def check(name: str, model: Network, data: CanaryData) -> None:
        assert data.clean is not None
        finding = scanner.scan(model, data, sample_runtime())
        again = scanner.scan(model, data, sample_runtime())
        assert _same(finding, again), f"{name}: the same seed gave another finding"
        order = torch.randperm(len(data.clean), generator=torch.Generator().manual_seed(3))
        shuffled = scanner.scan(model, replace(data, clean=data.clean.subset(order)), sample_runtime())
        assert _same(finding, shuffled), f"{name}: the order of the clean samples changes the finding"
        assert len(finding.anomaly) == data.clean.classes, f"{name}: not one anomaly a class"
        targets = [one.target for one in finding.distributions]
        assert len(set(targets)) == len(targets), f"{name}: two distributions of one class"
        for one, other in zip(finding.distributions, again.distributions):
            triggers, same = (each.sample(8, torch.Generator().manual_seed(3)) for each in (one, other))
            assert torch.equal(triggers, same), f"{name}: the same seed gave other triggers"
            channels, height, width = data.clean.shape
            sides = triggers.shape[2:]
            fits = triggers.shape[1] == channels and sides[0] <= height and sides[1] <= width
            assert fits, f"{name}: triggers do not fit the images"
            in_range = bool((triggers >= 0).all() and (triggers <= 1).all())
            assert in_range, f"{name}: triggers leave [0, 1]"

    _over_shapes(type(scanner).__name__, check)


def check_inspection(inspection: Inspection) -> None:
    """Check an inspection on colour, grey and oblong images, without an attack; give it short schedules.

    The model and the reference stay as they were; no hook is left behind; the same seed gives the same insight. A shape
    may be refused with an InputError.

    Raises:
        AssertionError: naming what is violated.
    """

    def check(name: str, model: Network, data: CanaryData) -> None:
        reference = sample_network(model.description.image_shape)
        before = state_of(reference)
        material = Material(clean=data.need_clean(name), reference=reference)
        one, other = (inspection.inspect(model, material, sample_runtime()) for _ in range(2))
        # As text: what is not a number is not equal to itself.
        assert repr(one) == repr(other), f"{name}: the same seed gave another insight"
        assert same_state(before, state_of(reference)), f"{name}: the reference has changed"
        assert hooks_on(reference) == 0, f"{name}: hooks are left on the reference"

    _over_shapes(type(inspection).__name__, check)


def check_sifter(sifter: Sifter) -> None:
    """Check a sifter on colour, grey and oblong images; give it short schedules.

    There is one finite score a row, and no row is held both clean and poisoned; the same seed says the same of each
    row, in whatever order the rows come; the model that it is given, and the data, stay as they were; no hook is left
    behind; nothing but the defender's data is touched. It works with the model that it is given, and without one, and
    with clean samples if it says that it uses them. A shape may be refused with an InputError.

    Raises:
        AssertionError: naming what is violated.
        OracleError: it reached for what no defender has.
    """

    def check(name: str, model: Network, data: CanaryData) -> None:
        assert data.clean is not None
        untrusted = data.clean
        found = sifter.score(CanaryData(untrusted=untrusted), sample_runtime(), model)
        assert len(found) == len(untrusted), f"{name}: not one score a row"
        assert bool(found.scores.isfinite().all()), f"{name}: scores that are no numbers"
        assert not bool((found.clean & found.poisoned).any()), f"{name}: rows are held both clean and poisoned"
        again = sifter.score(CanaryData(untrusted=untrusted), sample_runtime(), model)
        assert _same_rows(found, again), f"{name}: the same seed gave other scores"
        order = torch.randperm(len(untrusted), generator=torch.Generator().manual_seed(3))
        shuffled = sifter.score(CanaryData(untrusted=untrusted.subset(order)), sample_runtime(), model)
        assert _same_rows(found.at(order), shuffled), f"{name}: the order of the rows changes what is said of them"
        # As short as training can be: it is asked only whether it works without a model.
        alone = sifter.score(CanaryData(untrusted=untrusted), replace(sample_runtime(), budget=1e-3))
        assert len(alone) == len(untrusted), f"{name}: not one score a row without a model"
        if sifter.uses_clean:
            helped = sifter.score(CanaryData(untrusted=untrusted, clean=untrusted), sample_runtime(), model)
            assert len(helped) == len(untrusted), f"{name}: not one score a row with clean samples"

    _over_shapes(type(sifter).__name__, check)


def check_input_filter(sieve: InputFilter) -> None:
    """Check a filter of inputs on colour, grey and oblong images.

    There is one finite score an image; the same seed gives an image the same score, in whatever order images come, and
    alone; of no images there are no scores; the model that it is given, and the images, stay as they were; no hook is
    left behind. A shape may be refused with an InputError.

    Raises:
        AssertionError: naming what is violated.
    """

    def check(name: str, model: Network, data: CanaryData) -> None:
        images = data.need_clean(name).images
        scores = sieve.score(model, images, sample_runtime())
        assert scores.shape == (len(images),), f"{name}: not one score an image"
        assert bool(scores.isfinite().all()), f"{name}: scores that are no numbers"
        again = sieve.score(model, images, sample_runtime())
        assert torch.equal(scores, again), f"{name}: the same seed gave other scores"
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
        shuffled = sieve.score(model, images[order], sample_runtime())
        assert torch.equal(scores[order], shuffled), f"{name}: the order of the images changes their scores"
        # But for rounding, which may differ with the size of a batch.
        alone = torch.cat([sieve.score(model, image[None], sample_runtime()) for image in images[:8]])
        same = torch.allclose(scores[:8], alone, rtol=1e-4, atol=1e-6)
        assert same, f"{name}: the score of an image depends on its company"
        assert len(sieve.score(model, images[:0], sample_runtime())) == 0, f"{name}: there are scores of no images"

    _over_shapes(type(sieve).__name__, check)


def _same_rows(one: Suspicion, other: Suspicion) -> bool:
    pairs = ((one.scores, other.scores), (one.clean, other.clean), (one.poisoned, other.poisoned))
    return all(torch.equal(left, right) for left, right in pairs)


def _same(one: Finding, other: Finding) -> bool:
    return one.to_json() == other.to_json()


def _over_shapes(name: str, check: Callable[[str, Network, CanaryData], None]) -> None:
    """Run a check on every shape, and check what holds for all defences and inspections."""
    supported = 0
    for shape in SHAPES:
        model, images = sample_network(shape), sample_images(shape)
        state, pixels, training = state_of(model), images.digest(), model.training
        trainable = [parameter.requires_grad for parameter in model.parameters()]
        try:
            check(f"{name} on {shape}", model, CanaryData(clean=images, untrusted=images))
        except InputError:
            continue
        supported += 1
        assert same_state(state, state_of(model)), f"{name}: the model that it was given has changed"
        assert model.training == training, f"{name}: the model's mode has changed"
        assert trainable == [p.requires_grad for p in model.parameters()], f"{name}: requires_grad has changed"
        assert all(p.grad is None for p in model.parameters()), f"{name}: gradients are left on the model"
        assert hooks_on(model) == 0, f"{name}: hooks are left on the model"
        assert images.digest() == pixels, f"{name}: the clean samples have changed"
    assert supported, f"{name} supports none of {SHAPES}"
