"""What a sifter said of the rows of a data set, as a page shows it."""

from __future__ import annotations

import torch

from unbackdoor.data import ImageSet
from unbackdoor.report.charts import histogram_chart
from unbackdoor.report.content import Chart, Gallery, Picture, Verdict
from unbackdoor.sift import Sifter, Suspicion

MOST_CLASSES = 12
"""Whose images are shown."""

IMAGES = 6
"""Of a class that are shown."""


def suspicion_verdict(found: Suspicion, sifter: Sifter) -> Verdict:
    """Return the banner: what the rows held poisoned say of the data as a whole."""
    method, held = type(sifter).__name__, int(found.poisoned.sum())
    rows = f"{held:,} of {len(found):,} rows"
    if sifter.always:
        return ranking_verdict(method, found.summary)
    if held:
        return Verdict(
            level="backdoored",
            headline=f"{rows} look poisoned to {method}.",
            detail=f"{found.summary}.",
            calibrated=False,
        )
    return Verdict(
        level="no evidence",
        headline=f"No evidence of poisoned rows found by {method}.",
        detail=f"{found.summary}.",
        calibrated=False,
    )


def ranking_verdict(method: str, summary: str) -> Verdict:
    """Return the banner of a method that always holds a share of the rows poisoned."""
    return Verdict(
        level="inconclusive",
        headline=f"{method} ranks rows; it cannot say whether any is poisoned.",
        detail=f"{summary}. It does so with clean data too.",
        calibrated=True,
    )


def suspicion_chart(found: Suspicion) -> Chart:
    """Return how many rows have which score."""
    return histogram_chart(found.scores.tolist(), found.poisoned.tolist(), "suspicion score")


def left_out(classes: int, held: int) -> str:
    """Return the sentence, after another, that tells of classes that are not shown; nothing if there are none.

    Args:
        classes: how many.
        held: rows of theirs that are held poisoned.
    """
    if not classes:
        return ""
    return f" {classes:,} more classes, with {held:,} rows held poisoned, are not shown; the table has their rows."


def suspicious_galleries(found: Suspicion, rows: ImageSet) -> list[Gallery]:
    """Return the most suspicious images of up to `MOST_CLASSES` classes, those with the most rows held poisoned first.

    The last of them says how many classes are left out.
    """
    labels = rows.labels.cpu()
    held = torch.bincount(labels[found.poisoned], minlength=rows.classes)
    present = [c for c in range(rows.classes) if bool((labels == c).any())]
    order = sorted(present, key=lambda c: (-int(held[c]), -float(found.scores[labels == c].max())))
    words = found.words()
    galleries: list[Gallery] = []
    for c in order[:MOST_CLASSES]:
        members = (labels == c).nonzero().squeeze(1)
        told = f"{int(held[c]):,} of its {len(members):,} rows are held poisoned."
        if len(galleries) + 1 == MOST_CLASSES:
            others = order[MOST_CLASSES:]
            told += left_out(len(others), int(held[others].sum()))
        top = members[found.scores[members].argsort(descending=True, stable=True)[:IMAGES]]
        galleries.append(
            Gallery(
                title=f"Most suspicious of class {rows.class_names[c]}",
                explanation=told,
                pictures=[
                    Picture(
                        caption=f"row {row}: {found.scores[row]:.3g}, {words[row]}",
                        image=rows.images[row].float() / 255,
                    )
                    for row in top.tolist()
                ],
            )
        )
    return galleries
