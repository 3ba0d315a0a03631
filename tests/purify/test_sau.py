"""SAU's terms, against plain loops over samples."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from unbackdoor.purify.ft_sam import adaptive_climb
from unbackdoor.purify.sau import jensen_shannon, search_objective, unlearning_loss


def test_divergence_is_scipys() -> None:
    p, q = torch.rand(2, 6, 5).softmax(2)
    expected = [jensenshannon(a, b) ** 2 for a, b in zip(p.numpy(), q.numpy())]
    assert jensen_shannon(p, q).tolist() == pytest.approx(expected, abs=1e-6)


def test_search_objective_is_the_sum_over_samples() -> None:
    torch.manual_seed(0)
    ours, theirs = 3 * torch.randn(2, 40, 4)
    labels, own, suspects = torch.randint(0, 4, (3, 40))
    total, finished = 0.0, []
    for i in range(40):
        a, b = int(ours[i].argmax()), int(theirs[i].argmax())
        p, q = ours[i].softmax(0), theirs[i].softmax(0)
        if a == own[i]:
            total += 0.3 * math.log(float(p[labels[i]])) / 2
        if b == suspects[i]:
            total += 0.3 * math.log(float(q[labels[i]])) / 2
        finished.append(a != int(own[i]) and b != int(suspects[i]) and a == b)
        if not finished[-1]:
            total += 0.7 * jensenshannon(p.numpy(), q.numpy()) ** 2
    objective, shared = search_objective(ours, theirs, labels, own, suspects, 0.3, 0.7)
    assert float(objective) == pytest.approx(total, abs=1e-3)
    assert shared.tolist() == finished
    assert any(finished)


def test_unlearning_loss_is_the_sum_over_fooled_samples_by_the_whole_batch() -> None:
    torch.manual_seed(1)
    logits, answers, fooled = torch.randn(30, 4), torch.randint(0, 4, (30,)), torch.rand(30) < 0.5
    expected = -sum(math.log(1 - float(logits[i].softmax(0)[answers[i]])) for i in range(30) if fooled[i]) / 30
    assert float(unlearning_loss(logits, answers, fooled)) == pytest.approx(expected, abs=1e-4)


def test_climb_has_the_adaptive_norm_over_all_tensors() -> None:
    weights, gradients = [torch.randn(3, 2), torch.randn(4)], [torch.randn(3, 2), torch.randn(4)]
    climb = adaptive_climb(weights, gradients, 2.0)
    norm = math.sqrt(sum(float(((w.abs() * g) ** 2).sum()) for w, g in zip(weights, gradients)))
    for e, w, g in zip(climb, weights, gradients):
        assert torch.allclose(e, 2.0 * w**2 * g / norm, atol=1e-6)
