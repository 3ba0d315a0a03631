"""Which rows are poisoned, what they are called, and that nothing else is touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attacks.test_badnets import prepare, some
from unbackdoor.attacks import (
    CLEAN,
    COVER,
    CTRL,
    POISON,
    SIG,
    AdaptiveBlend,
    AdaptivePatch,
    AllToAll,
    AllToOne,
    BadNets,
    Blended,
    FTrojan,
    LabelConsistent,
    MESAPatch,
    Poisoning,
    Refool,
    Smooth,
    SourceSpecific,
    Stamp,
    TaCT,
    TrojanNN,
)
from unbackdoor.attacks.criterion import criterion_from_json
from unbackdoor.attacks.trigger import check_changes, number_of
from unbackdoor.errors import InputError

CLASSES = 5


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Return options that 200 images of five equal classes can bear."""
    labels: Literal["all-to-one", "all-to-all", "clean"] = draw(st.sampled_from(["all-to-one", "all-to-all", "clean"]))
    target = draw(st.integers(0, CLASSES - 1))
    others = [number for number in range(CLASSES) if number != target]
    sources = draw(st.sets(st.sampled_from(others), max_size=2)) if labels == "all-to-one" else set()
    most = 40 if sources or labels == "clean" else 120
    return {
        "labels": labels,
        "target": target,
        "sources": tuple(sorted(sources)),
        "poison_rate": draw(st.integers(1, most)) / 200,
        "cover_rate": draw(st.integers(0, 40)) / 200,
    }


@settings(max_examples=60, deadline=None)
@given(
    chosen=options(),
    channels=st.sampled_from([1, 3, 4]),
    height=st.integers(11, 40),
    width=st.integers(11, 40),
    seed=st.integers(0, 5),
)
def test_counts_are_exact_and_nothing_else_is_touched(
    chosen: dict[str, Any], channels: int, height: int, width: int, seed: int
) -> None:
    train = some(200, (channels, height, width), CLASSES)
    attack = BadNets(**chosen)
    fitted = prepare(attack, train, seed)
    poison, cover, clean = (fitted.kinds == kind for kind in (POISON, COVER, CLEAN))
    assert int(poison.sum()) == round(200 * attack.poison_rate)
    assert int(cover.sum()) == round(200 * attack.cover_rate)
    assert torch.equal(fitted.train.images[clean], train.images[clean])
    assert torch.equal(fitted.train.labels[~poison], train.labels[~poison])
    assert torch.equal(fitted.train.images[~clean], fitted.trigger.stamp(train.images[~clean]))
    assert torch.equal(fitted.original_labels, train.labels)
    assert fitted.train.images.dtype == torch.uint8
    before, after = train.labels[poison], fitted.train.labels[poison]
    if attack.labels == "all-to-all":
        assert torch.equal(after, (before + 1) % CLASSES)
    else:
        assert bool((after == attack.target).all())
    if attack.labels == "clean":
        assert bool((before == attack.target).all())
    if attack.sources:
        assert set(before.tolist()) <= set(attack.sources)
        assert not set(train.labels[cover].tolist()) & set(attack.sources)


STAMPED = [
    AdaptiveBlend(),
    AdaptivePatch(),
    Blended(),
    CTRL(),
    FTrojan(),
    LabelConsistent(steps=0),
    MESAPatch(),
    Refool(reflections=5),
    SIG(),
    Smooth(),
    TaCT(covers=()),
    TrojanNN(steps=0),
]
"""Those of the attacks that poison data which need no model."""


@pytest.mark.parametrize("attack", STAMPED, ids=lambda attack: type(attack).__name__)
@settings(max_examples=12, deadline=None)
@given(
    channels=st.sampled_from([1, 3, 4]),
    height=st.integers(16, 40),
    width=st.integers(16, 40),
    poisoned=st.integers(1, 12),
    covered=st.integers(0, 12),
    seed=st.integers(0, 5),
)
def test_every_stamp_keeps_to_its_rows_at_every_size_and_rate(
    attack: Poisoning, channels: int, height: int, width: int, poisoned: int, covered: int, seed: int
) -> None:
    train = some(60, (channels, height, width), CLASSES)
    fitted = prepare(replace(attack, poison_rate=poisoned / 60, cover_rate=covered / 60), train, seed)
    poison, cover, clean = (fitted.kinds == kind for kind in (POISON, COVER, CLEAN))
    assert (int(poison.sum()), int(cover.sum())) == (poisoned, covered)
    assert torch.equal(fitted.train.images[clean], train.images[clean])
    assert torch.equal(fitted.train.labels[~poison], train.labels[~poison])
    assert torch.equal(fitted.train.labels[poison], fitted.criterion.wanted(train.labels[poison]))
    assert (fitted.train.images.dtype, fitted.train.shape) == (torch.uint8, train.shape)
    if attack.labels == "clean":
        assert train.labels[poison].unique().tolist() == [attack.target]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("attack", STAMPED, ids=lambda attack: type(attack).__name__)
def test_every_trigger_takes_images_of_every_precision(attack: Poisoning, dtype: torch.dtype) -> None:
    train = some(60)
    trigger = prepare(replace(attack, poison_rate=0.1, cover_rate=0.1), train).trigger
    images = (train.images.float() / 255).to(dtype)
    triggered = trigger(images)
    assert (triggered.dtype, triggered.shape) == (dtype, images.shape)
    assert 0 <= float(triggered.min()) <= float(triggered.max()) <= 1
    assert float((triggered.float() - trigger(images.float())).abs().max()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_an_image_has_the_same_number_in_every_precision(dtype: torch.dtype) -> None:
    images = some(50).images.float() / 255
    assert torch.equal(number_of(images.to(dtype)), number_of(images))


def test_poisoned_rows_come_from_all_classes_the_target_among_them() -> None:
    fitted = prepare(BadNets(poison_rate=0.5), some())
    assert set(fitted.original_labels[fitted.kinds == POISON].tolist()) == set(range(CLASSES))


def test_the_target_class_can_be_spared_as_some_papers_do() -> None:
    fitted = prepare(BadNets(poison_rate=0.5, spare_target=True, target=2), some())
    assert set(fitted.original_labels[fitted.kinds == POISON].tolist()) == {0, 1, 3, 4}
    assert int((fitted.kinds == POISON).sum()) == 100


def test_the_criterion_follows_from_labels_and_sources() -> None:
    assert prepare(BadNets(target=2), some()).criterion == AllToOne(target=2)
    assert prepare(BadNets(target=2, labels="clean"), some()).criterion == AllToOne(target=2)
    assert prepare(BadNets(labels="all-to-all"), some()).criterion == AllToAll(classes=CLASSES)
    assert prepare(BadNets(sources=(3, 1)), some()).criterion == SourceSpecific(sources=(3, 1), target=0)


def test_source_specific_success_counts_images_of_the_sources_alone() -> None:
    criterion = SourceSpecific(sources=(1, 3), target=0)
    labels = torch.tensor([0, 1, 2, 3, 4])
    assert criterion.wanted(labels).tolist() == [0, 0, 2, 0, 4]
    assert criterion.counted(labels).tolist() == [False, True, False, True, False]
    assert criterion_from_json(criterion.to_json()) == criterion


@pytest.mark.parametrize(
    "change", [{"sources": []}, {"sources": [-1]}, {"sources": ["1"]}, {"sources": 1}, {"target": -1}, {"target": None}]
)
def test_a_damaged_description_of_sources_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="unknown success criterion"):
        criterion_from_json({"kind": "source-specific", "sources": [1], "target": 0, **change})


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"labels": "dirty"}, "labels must be all-to-one, all-to-all or clean, found 'dirty'"),
        ({"sources": (0,)}, "the target cannot be one of them"),
        ({"sources": (1,), "labels": "clean"}, "source classes need all-to-one labels"),
        ({"sources": (9,)}, "class 9 is out of range"),
        ({"target": 5}, "target class 5 is out of range"),
        ({"poison_rate": 0.6, "cover_rate": 0.6}, "a cover rate of 0.6 needs 120 images, but only 80 may be covered"),
        ({"cover_rate": -0.1}, "the cover rate must lie above 0"),
        ({"patch": "round"}, "the patch is one of square, grid, checker"),
        ({"spare_target": True, "labels": "all-to-all"}, "the target class can be spared with all-to-one labels only"),
        ({"margin": -1}, "the margin 0 or more"),
        ({"margin": 30}, "does not fit images of 32 x 32"),
    ],
)
def test_contradictions_are_refused_with_a_sentence(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(BadNets(**chosen), some())


@pytest.mark.parametrize(
    "attack",
    [
        LabelConsistent(opacity=0.001),
        SIG(test_amplitude=0.001),
        SIG(amplitude=0.001, test_amplitude=0.1),
        AdaptiveBlend(poison_rate=0.1, cover_rate=0.1, test_alpha=0.001),
        AdaptiveBlend(poison_rate=0.1, cover_rate=0.1, alpha=0.001),
    ],
    ids=[
        "LabelConsistent",
        "SIG in testing",
        "SIG in training",
        "AdaptiveBlend in testing",
        "AdaptiveBlend in training",
    ],
)
def test_a_trigger_that_does_nothing_is_refused_though_another_stage_s_does_something(attack: Poisoning) -> None:
    with pytest.raises(InputError, match="changes no pixel"):
        prepare(attack, some())


def test_a_trigger_is_tried_until_a_pixel_changes_and_no_further() -> None:
    seen: list[int] = []

    class Counts(Stamp):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return super().forward(images)

    images = torch.full((1200, 3, 32, 32), 255, dtype=torch.uint8)
    white = Counts(mask=torch.ones(1, 32, 32), pattern=torch.ones(3, 32, 32))
    with pytest.raises(InputError, match="changes no pixel"):
        check_changes(white, images)
    assert seen == [500, 500, 200]
    images[700] = 0
    check_changes(white, images)
    assert seen[3:] == [500, 500]


def test_the_grid_of_trap_and_replace_is_black_and_white_as_its_file() -> None:
    fitted = prepare(BadNets(patch="grid"), some())
    corner = fitted.trigger.stamp(torch.full((1, 3, 32, 32), 100, dtype=torch.uint8))[0, :, 29:, 29:]
    expected = torch.tensor([[0, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=torch.uint8)
    assert torch.equal(corner, expected.expand(3, 3, 3))


def test_a_margin_moves_the_patch_away_from_the_edges() -> None:
    fitted = prepare(BadNets(size=4, margin=1), some())
    white = fitted.trigger.stamp(torch.zeros(1, 1, 32, 32, dtype=torch.uint8).expand(1, 3, 32, 32)) == 255
    assert white[0, 0].nonzero().min(0).values.tolist() == [27, 27]
    assert white[0, 0].nonzero().max(0).values.tolist() == [30, 30]
    assert int(white.sum()) == 3 * 16
