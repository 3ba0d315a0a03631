"""A trigger, as a page shows it."""

from __future__ import annotations

from unbackdoor.attacks import Criterion, Trigger
from unbackdoor.data import ImageSet
from unbackdoor.evaluate import triggered_images
from unbackdoor.report.content import Gallery, Picture
from unbackdoor.report.pictures import amplified_difference

EXAMPLES = 4
LOOKED_AT = 50


def trigger_gallery(test: ImageSet, trigger: Trigger, criterion: Criterion) -> Gallery:
    """Return clean, triggered and 10x-amplified difference images of a few test images."""
    counted = criterion.counted(test.labels).nonzero().squeeze(1)
    # Of all classes: some triggers leave flat images as they are.
    some = counted[:: max(1, len(counted) // LOOKED_AT)]
    triggered, originals = triggered_images(test.subset(some), trigger, criterion)
    wanted = criterion.wanted(originals.labels)
    pictures = []
    for row in range(min(EXAMPLES, len(originals))):
        name = test.class_names[int(originals.labels[row])]
        goal = test.class_names[int(wanted[row])]
        clean, stamped = originals.images[row].float() / 255, triggered[row].float() / 255
        pictures += [
            Picture(caption=f"clean ({name})", image=clean),
            Picture(caption=f"triggered (wanted: {goal})", image=stamped),
            Picture(caption="difference x 10", image=amplified_difference(clean, stamped)),
        ]
    return Gallery(
        title="What the trigger does",
        explanation="Test images without and with the trigger, as 8-bit files hold them.",
        pictures=pictures,
    )
