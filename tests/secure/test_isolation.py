"""Isolation by losses: the losses of rows, and the rows that are isolated."""

from __future__ import annotations

import math

import pytest
import torch

from tests.planted import network, pictures, runtime
from unbackdoor.secure.isolation import lowest
from unbackdoor.training import losses_of


def test_losses_are_those_of_each_image_alone_in_evaluation_mode() -> None:
    model, data = network(0).train(), pictures(20, 0)
    losses = losses_of(model, data, runtime())
    assert model.training
    model.eval()
    for image, label, loss in zip(data.images, data.labels, losses.tolist()):
        probability = model(image[None].float() / 255).softmax(1)[0, label]
        assert loss == pytest.approx(-math.log(float(probability.detach())), rel=1e-4)


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.001, 1), (0.999, 7)])
def test_the_lowest_losses_are_isolated_at_least_one_and_never_all(share: float, count: int) -> None:
    losses = torch.tensor([3.0, 0.5, 2.0, 0.1, 9.0, 4.0, 1.0, 7.0])
    isolated, kept = lowest(losses, share)
    assert len(isolated) == count
    assert sorted([*isolated.tolist(), *kept.tolist()]) == list(range(8))
    assert float(losses[isolated].max()) < float(losses[kept].min())
    assert isolated.tolist() == sorted(isolated.tolist())
