"""Pictures for the pages."""

from __future__ import annotations

from unbackdoor.attacks import Criterion, Trigger
from unbackdoor.data import ImageSet
from unbackdoor.evaluate import triggered_images
from unbackdoor.report import Chart, Gallery, Picture, amplified_difference, curve_chart
from unbackdoor.scan import Finding, Reconstruction
from unbackdoor.training import History

EXAMPLES = 4


def loss_chart(history: History, unit: str, name: str) -> Chart:
    """Return the mean loss over the epochs of a run, called `name` and counted in `unit`."""
    return curve_chart(range(1, len(history.loss) + 1), history.loss, unit, name)


def trigger_gallery(test: ImageSet, trigger: Trigger, criterion: Criterion) -> Gallery:
    """Return clean, triggered and 10x-amplified difference images of a few test images."""
    counted = criterion.counted(test.labels).nonzero().squeeze(1)
    triggered, originals = triggered_images(test.subset(counted[: max(EXAMPLES, 50)]), trigger, criterion)
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


def found_gallery(finding: Finding, class_names: tuple[str, ...], true: Trigger | None = None) -> Gallery | None:
    """Return the triggers as found: of the suspected classes, or of the least unusual ones beside nothing.

    Args:
        finding: of a scanner that reconstructs triggers; None is returned for others.
        class_names: of the model.
        true: the attack's own trigger, shown beside where it is known; on a grey image.
    """
    if not finding.reconstructions:
        return None
    order = finding.suspected or (int(finding.anomaly.argmax()),)
    pictures = [picture for c in order[:EXAMPLES] for picture in _found(finding.reconstructions[c], class_names[c])]
    if true is not None:
        grey = finding.reconstructions[0].pattern.new_full(finding.reconstructions[0].pattern.shape, 0.5)
        pictures.append(Picture(caption="the true trigger, on grey", image=true(grey[None])[0].clamp(0, 1)))
    return Gallery(
        title="The trigger as found",
        explanation="Reconstructed from the model and clean samples alone, by optimisation: the true one may look"
        " different and still share its effect.",
        pictures=pictures,
    )


def _found(found: Reconstruction, name: str) -> list[Picture]:
    """Return mask, and mask times pattern, of one class."""
    return [
        Picture(caption=f"mask for {name} ({found.size:.1f} pixels)", image=found.mask),
        Picture(caption=f"trigger for {name}", image=found.mask * found.pattern),
    ]
