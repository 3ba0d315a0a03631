"""Which classes are taken for which, against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import confusion_matrix

from tests.inspect.known import material
from tests.planted import planted, runtime
from unbackdoor.inspect import Confusion, Matrix
from unbackdoor.inspect.confusion import attraction, confusion_counts
from unbackdoor.training import logits_of


def test_the_counts_are_scikit_learn_s() -> None:
    clean, suspect = material().clean, planted(1).suspect
    answers = logits_of(suspect, clean.images, runtime()).argmax(1)
    expected = confusion_matrix(clean.labels, answers, labels=range(8))
    assert confusion_counts(suspect, clean, runtime()).tolist() == expected.tolist()


def test_attraction_is_the_share_of_other_classes_images() -> None:
    counts = torch.tensor([[8, 2, 0], [1, 9, 0], [4, 6, 0]])
    assert attraction(counts) == pytest.approx([5 / 20, 8 / 20, 0])
    assert attraction(torch.tensor([[3, 0], [0, 0]])) == [0, 0], "and nothing where there are no others"


def test_the_target_draws_triggered_images_to_itself_in_the_suspect_alone() -> None:
    target = planted(1).target
    found = Confusion().inspect(planted(1).suspect, material(), runtime())
    suspect, twin = found.measured["suspect"], found.measured["reference"]
    assert suspect["triggered"]["attraction"][target] > 0.9
    assert suspect["clean"]["attraction"][target] < 0.1
    assert max(twin["triggered"]["attraction"]) < 0.3
    assert suspect["triggered"]["right"] < 0.1 < 0.9 < suspect["clean"]["right"]
    share = 100 * suspect["triggered"]["attraction"][target]
    assert f"of the triggered images of other classes {share:.1f} % get {'abcdefgh'[target]}" in found.headline


def test_rows_of_a_matrix_add_up_and_lie_in_the_order_of_the_classes() -> None:
    found = Confusion().inspect(planted(1).suspect, material(), runtime())
    assert len(found.figures) == 4
    target = planted(1).target
    for figure in found.figures:
        assert isinstance(figure, Matrix)
        triggered = "triggered" in figure.title
        sums = [sum(row) for row in figure.shares]
        assert sums == pytest.approx([0.0 if triggered and row == target else 1.0 for row in range(8)])
    woken = found.figures[1]
    assert isinstance(woken, Matrix)
    assert woken.shares[(target + 1) % 8][target] > 0.8, "rows are true classes, columns are answers"
