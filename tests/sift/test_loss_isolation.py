"""Loss isolation: the losses of a model that is given, and rows that are learned first."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.planted import planted, runtime
from tests.sift.spread import auroc, centres, reader, spread
from tests.sift.spread import runtime as plain_runtime
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.sift import LossIsolation


def test_scores_are_the_negative_losses_of_a_model_that_is_given() -> None:
    rows = spread(torch.zeros(48))
    model = reader()
    found = LossIsolation(poisoned_share=0.1).score(rows.data, plain_runtime(), model)
    logits = model(rows.rows.images.float() / 255)
    torch.testing.assert_close(
        found.scores, -F.cross_entropy(logits, rows.rows.labels, reduction="none").detach(), atol=1e-5, rtol=1e-4
    )
    assert int(found.poisoned.sum()) == 60
    assert float(found.scores[found.poisoned].min()) >= float(found.scores[~found.poisoned].max())


def test_rows_that_lie_deep_in_their_class_are_isolated_and_before_they_did_they_were_not() -> None:
    rows = spread(1.8 * centres()[2])
    isolated = LossIsolation(poisoned_share=0.01).score(rows.data, plain_runtime(), reader(0.2 * centres()))
    assert float(rows.planted[isolated.poisoned].float().mean()) > 0.5
    before = LossIsolation(poisoned_share=0.02).score(rows.without, plain_runtime(), reader(0.2 * centres()))
    assert auroc(before.scores, rows.planted) < 0.75


def test_a_network_trained_by_ascent_has_learned_the_poison_first() -> None:
    models = planted(0)
    mask = models.fitted.kinds == 1
    sifter = LossIsolation(epochs=1, poisoned_share=0.02)
    found = sifter.score(DefenderData(untrusted=models.fitted.train), runtime())
    assert float(mask[found.poisoned].float().mean()) > 3 * float(mask.float().mean())


@pytest.mark.parametrize("gamma", [-0.1, math.inf, math.nan])
def test_a_gamma_that_cannot_be_is_refused(gamma: float) -> None:
    with pytest.raises(InputError, match="gamma must be 0 or more"):
        LossIsolation(gamma=gamma)
