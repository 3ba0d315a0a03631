"""The plain FCT takes the steps of ours: the same images, the same loss, the same scores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.naive import fct as naive
from tests.benchmarks.test_naive import CPU, plain_layout
from tests.planted import SHAPE, pictures, runtime
from unbackdoor.data import ImageSet
from unbackdoor.models import Description, Network, build_network
from unbackdoor.sift import FCT
from unbackdoor.sift.fct import DEGREES, LOTS, closeness, shifts, turned
from unbackdoor.sift.lots import lots
from unbackdoor.sift.observed import Observed


def small(seed: int) -> Network:
    names = pictures(8, 0).class_names
    description = Description(
        architecture="PreActResNet18",
        arguments={"width": 4},
        class_names=names,
        image_shape=SHAPE,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    return build_network(description, seed=seed).eval()


def same_turns(rows: ImageSet, draws: int) -> Iterator[naive.Turn]:
    """Yield the rotations and shifts that ours draws."""
    height, width = (int(naive.SHIFT * side) for side in rows.shape[1:])
    chance = lots(rows.images, runtime(), "fct tau", LOTS * draws)
    for part in torch.split(chance, LOTS, dim=1):
        for angle, down, across in part.tolist():
            columns, up = int(across * shifts(rows.shape[2])), int(down * shifts(rows.shape[1]))
            yield DEGREES * (2 * angle - 1), columns - width, up - height


def test_pictures_are_turned_and_shifted_as_ours() -> None:
    rows = pictures(40, 0)
    ours = turned(rows.images.float() / 255, lots(rows.images, runtime(), "fct tau", LOTS))
    samples = naive.Samples(rows, "none", CPU, 0)
    pairs = zip(samples.pictures, same_turns(rows, 1))
    plain = torch.stack([naive.tensor(naive.turned(picture, turn)) for picture, turn in pairs])
    difference = (ours - plain).abs()
    # Of whole numbers from 0 to 255, as pictures hold.
    assert float(difference.max()) < 1.01 / 255
    unturned = (ours - rows.images.float() / 255).abs()
    assert float(unturned.median()) > 10 / 255


def test_scores_equal() -> None:
    rows, model, method = pictures(120, 0), small(0), FCT(draws=3)
    seen = Observed(model, rows, None, runtime())
    ours, _ = method.measure(seen, seen.model)
    plain = naive.score(method, plain_layout(model), rows, same_turns(rows, 3), CPU)
    assert float(torch.corrcoef(torch.stack([ours, plain]))[0, 1]) > 0.999
    torch.testing.assert_close(plain, ours, rtol=0.03, atol=0)
    other = naive.score(method, plain_layout(model), rows, naive.turns(rows, 1), CPU)
    assert float(torch.corrcoef(torch.stack([ours, other]))[0, 1]) < 0.99, "other draws give other scores"


def test_the_loss_and_its_gradient_equal() -> None:
    model, rows = small(1), pictures(30, 1)
    labels = rows.labels.clone()
    labels[labels == 5] = 2  # a class that is absent
    images = rows.images.float() / 255
    plain = plain_layout(model).train()
    theirs = naive.closeness(naive.features(plain, images), labels, model.classes)
    theirs.backward()
    mine = plain_layout(model).train()
    loss = closeness(naive.features(mine, images), labels, model.classes)
    loss.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-4)
    pairs = [(a.grad, b.grad) for a, b in zip(mine.parameters(), plain.parameters()) if a.grad is not None]
    assert pairs
    for one, other in pairs:
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_all_steps_are_taken_and_timed() -> None:
    rows = pictures(64, 2)
    scored = naive.sift(FCT(epochs=2, draws=1, batch_size=32), lambda: small(2), rows, 1, 0, CPU)
    assert scored.scores.shape == (64,)
    assert set(scored.seconds) == {"learning", "pushing apart", "scoring"}
    assert float(scored.scores.std()) > 0
