"""What a page says of sifted rows: a banner that claims no more than is known, and the most suspicious images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unbackdoor.data import ImageSet
from unbackdoor.report import (
    Report,
    render,
    sharded_galleries,
    suspicion_chart,
    suspicion_verdict,
    suspicious_galleries,
)
from unbackdoor.sift import FCT, Consensus, Sifter, Suspicion
from unbackdoor.sift.sharded import ShardedSuspicion, Top
from unbackdoor.sift.sharded.marking import Marks, Thresholds
from unbackdoor.sift.sharded.ranks import Placed


def suspicion(held: list[int]) -> Suspicion:
    poisoned = torch.zeros(120, dtype=torch.bool)
    poisoned[held] = True
    return Suspicion(scores=torch.arange(120.0), clean=~poisoned, poisoned=poisoned, summary="so it was found")


@pytest.mark.parametrize(
    ("sifter", "held", "level", "words"),
    [
        (Consensus(), [5], "backdoored", "1 of 120 rows look poisoned to Consensus."),
        (Consensus(), [], "no evidence", "No evidence of poisoned rows found by Consensus."),
        (FCT(), [5], "inconclusive", "cannot say whether any is poisoned"),
        (FCT(), [], "inconclusive", "cannot say whether any is poisoned"),
    ],
)
def test_the_banner_claims_no_more_than_is_known(sifter: Sifter, held: list[int], level: str, words: str) -> None:
    verdict = suspicion_verdict(suspicion(held), sifter)
    assert verdict.level == level
    assert words in verdict.headline
    assert "so it was found" in verdict.detail
    assert verdict.calibrated == (level == "inconclusive")


def test_classes_with_rows_held_poisoned_come_first_with_their_highest_scores(tiny_images: ImageSet) -> None:
    galleries = suspicious_galleries(suspicion([2, 6]), tiny_images)
    assert [gallery.title for gallery in galleries] == [f"Most suspicious of class {name}" for name in "cdba"]
    first = galleries[0]
    assert first.explanation == "2 of its 30 rows are held poisoned."
    assert [picture.caption for picture in first.pictures][:2] == ["row 118: 118, clean", "row 114: 114, clean"]
    assert torch.equal(first.pictures[0].image, tiny_images.images[118].float() / 255)


def test_classes_without_rows_are_left_out(tiny_images: ImageSet) -> None:
    some = replace(tiny_images, class_names=("a", "b", "c", "d", "never"))
    assert len(suspicious_galleries(suspicion([]), some)) == 4


def test_the_page_says_how_many_classes_it_leaves_out(tiny_images: ImageSet) -> None:
    wide = replace(tiny_images, labels=torch.arange(120) % 20, class_names=tuple(map(str, range(20))))
    galleries = suspicious_galleries(suspicion([2, 6, 7]), wide)
    assert len(galleries) == 12
    assert galleries[-1].explanation.endswith(
        "8 more classes, with 0 rows held poisoned, are not shown; the table has their rows."
    )
    assert not any("more classes" in gallery.explanation for gallery in galleries[:-1])


def test_hostile_class_names_are_escaped(tiny_images: ImageSet) -> None:
    hostile = replace(tiny_images, class_names=("<script>alert(1)</script>", "b", "c", "d"))
    found = suspicion([4])
    page = render(Report(title="x", galleries=suspicious_galleries(found, hostile), charts=[suspicion_chart(found)]))
    assert "<script>" not in page


def test_the_page_of_many_files_says_how_many_classes_it_leaves_out() -> None:
    for classes, shown in ((20, 12), (12, 12), (3, 3)):
        top = [Top(number, 1.0, "file", number, "clean") for number in range(classes)]
        held = [0] * (classes - 1) + [2]
        found = ShardedSuspicion(
            marks=Marks(classes=classes, members=[5] * classes, poisoned=held, top=top),
            thresholds=Thresholds(clean=None, poisoned=Placed(key=0, ties=1), lowest=0.0, highest=1.0),
            quantiles={},
            summary="",
            evidence={},
            digest="",
            sample=0,
            kept=0,
        )
        images = {one.place: torch.zeros(3, 4, 4, dtype=torch.uint8) for one in top}
        galleries = sharded_galleries(found, [str(number) for number in range(classes)], images)
        assert len(galleries) == shown
        assert galleries[0].title == f"Most suspicious of class {classes - 1}"
        words = "8 more classes, with 0 rows held poisoned, are not shown"
        assert [words in gallery.explanation for gallery in galleries] == [False] * (shown - 1) + [classes == 20]
