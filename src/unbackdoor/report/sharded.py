"""What a sifter said of the rows of many files, as a page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import UInt8
from torch import Tensor

from unbackdoor.report.charts import counted_chart
from unbackdoor.report.content import Chart, Gallery, Picture
from unbackdoor.report.suspicion import MOST_CLASSES, left_out

if TYPE_CHECKING:
    from unbackdoor.sift.sharded import Place, ShardedSuspicion, Top


def sharded_chart(found: ShardedSuspicion) -> Chart:
    """Return how many rows of all files have which score."""
    plain, held = found.marks.bins
    return counted_chart(plain, held, (found.thresholds.lowest, found.thresholds.highest), "suspicion score")


def sharded_top(found: ShardedSuspicion) -> dict[int, list[Top]]:
    """Return the rows that `sharded_galleries` shows, by class, in its order."""
    top: dict[int, list[Top]] = {}
    for one in found.marks.top:
        top.setdefault(one.label, []).append(one)
    order = sorted(top, key=lambda c: (-found.marks.poisoned[c], -top[c][0].score))
    return {c: top[c] for c in order[:MOST_CLASSES]}


def _left_out(found: ShardedSuspicion, shown: Mapping[int, list[Top]]) -> str:
    """Return the sentence that counts the classes that are not shown, or nothing."""
    others = {one.label for one in found.marks.top} - set(shown)
    return left_out(len(others), sum(found.marks.poisoned[c] for c in others))


def sharded_galleries(
    found: ShardedSuspicion, class_names: Sequence[str], images: Mapping[Place, UInt8[Tensor, "c h w"]]
) -> list[Gallery]:
    """Return the most suspicious images of up to `MOST_CLASSES` classes, those with the most rows held poisoned first.

    The last of them says how many classes are left out.

    Args:
        found: what was said of the rows.
        class_names: one name a class.
        images: at the places of `sharded_top`.
    """
    marks, shown = found.marks, sharded_top(found)
    last = list(shown)[-1:]
    return [
        Gallery(
            title=f"Most suspicious of class {class_names[c]}",
            explanation=f"{marks.poisoned[c]:,} of its {marks.members[c]:,} rows are held poisoned."
            + (_left_out(found, shown) if [c] == last else ""),
            pictures=[
                Picture(
                    caption=f"{one.shard}, row {one.row}: {one.score:.3g}, {one.word}",
                    image=images[one.place].float() / 255,
                )
                for one in top
            ],
        )
        for c, top in shown.items()
    ]
