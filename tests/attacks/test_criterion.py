"""What counts as success, and how it is written down."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from unbackdoor.attacks import AllToAll, AllToOne, Criterion
from unbackdoor.attacks.criterion import criterion_from_json
from unbackdoor.errors import InputError

LABELS = torch.tensor([0, 1, 2, 3, 2, 0])


def test_all_to_one_wants_the_target_and_does_not_count_its_own_images() -> None:
    criterion = AllToOne(target=2)
    assert criterion.wanted(LABELS).tolist() == [2] * 6
    assert criterion.counted(LABELS).tolist() == [True, True, False, True, False, True]


def test_all_to_all_wants_the_next_class_wraps_and_counts_every_image() -> None:
    criterion = AllToAll(classes=4)
    assert criterion.wanted(LABELS).tolist() == [1, 2, 3, 0, 3, 1]
    assert bool(criterion.counted(LABELS).all())


def test_labels_are_not_changed() -> None:
    labels = LABELS.clone()
    for criterion in (AllToOne(target=1), AllToAll(classes=4)):
        criterion.wanted(labels)
        criterion.counted(labels)
    assert torch.equal(labels, LABELS)


@pytest.mark.parametrize(
    "criterion", [AllToOne(target=0), AllToOne(target=7), AllToAll(classes=2), AllToAll(classes=43)]
)
def test_descriptions_lead_back_to_the_same_criterion(criterion: Criterion) -> None:
    assert criterion_from_json(json.loads(json.dumps(criterion.to_json()))) == criterion


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"kind": "all-to-one"},
        {"kind": "all-to-one", "target": -1},
        {"kind": "all-to-one", "target": "0"},
        {"kind": "all-to-one", "target": 1.0},
        {"kind": "all-to-one", "target": None},
        {"kind": "all-to-all", "classes": 1},
        {"kind": "all-to-all", "target": 3},
        {"kind": "some-to-some", "target": 1},
        {"kind": ["all-to-one"], "target": 1},
        [],
        "all-to-one",
        None,
    ],
    ids=str,
)
def test_other_descriptions_are_refused(description: Any) -> None:
    with pytest.raises(InputError, match="unknown success criterion"):
        criterion_from_json(description)
