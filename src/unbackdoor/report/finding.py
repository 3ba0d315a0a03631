"""What a scanner found, as a page shows it."""

from __future__ import annotations

import torch

from unbackdoor.attacks import Trigger
from unbackdoor.report.charts import anomaly_chart
from unbackdoor.report.content import Chart, Gallery, Picture, Verdict
from unbackdoor.scan import Finding, Reconstruction, Scanner

MOST_CLASSES = 4
"""Whose triggers are shown."""


def verdict_word(finding: Finding) -> str:
    """Return the verdict in a word or three; never "safe"."""
    if finding.backdoored is None:
        return "inconclusive"
    return "backdoored" if finding.backdoored else "no evidence found"


def finding_verdict(finding: Finding, scanner: Scanner, names: tuple[str, ...]) -> Verdict:
    """Return the banner of a finding."""
    method = type(scanner).__name__
    if finding.backdoored is None:
        return Verdict(
            level="inconclusive", headline="The scan is inconclusive.", detail=finding.reason, calibrated=True
        )
    if finding.backdoored:
        suspected = " and ".join(names[c] for c in finding.suspected)
        headline = f"This model looks backdoored, towards class {suspected}."
        return Verdict(level="backdoored", headline=headline, detail=finding.reason, calibrated=finding.calibrated)
    return Verdict(
        level="no evidence",
        headline=f"No evidence of a backdoor found by {method}.",
        detail=finding.reason,
        calibrated=finding.calibrated,
    )


def calibration_rows(finding: Finding) -> list[tuple[str, str]]:
    """Return what is known of how often the verdict is wrong."""
    if "p_value" not in finding.evidence:
        return [("calibrated", "yes" if finding.calibrated else "no: the false-alarm rate is not known")]
    by, rate = finding.evidence["calibration"], finding.evidence["false_alarms"]
    p_value = ("p-value", f"{finding.evidence['p_value']:.3g}, from {by['clean_models']} clean models")
    if not finding.calibrated:
        return [p_value, ("calibrated", f"no: this scan has {', '.join(by['misfits'])}; compared with {by['name']}")]
    held = by["held_out"]
    measured = (
        f"; of models held out, {held['alarms']} of {held['clean']} clean and {held['found']} of {held['backdoored']}"
        " backdoored ones were called backdoored"
        if rate == by["rate"]
        else ""
    )
    return [
        p_value,
        ("false alarms", f"at most {100 * rate:.3g} % of clean models like those of the zoo on {by['data']}{measured}"),
        ("calibrated", f"yes, on {by['name']}"),
    ]


def said_rows(finding: Finding) -> list[tuple[str, str]]:
    """Return what each of several scanners said, and how long it took; nothing for a single scanner."""
    words = {True: "backdoored", False: "no evidence", None: "inconclusive"}
    rows = []
    for one in finding.evidence.get("detectors", ()):
        said = (
            f"cannot: {one['reason']}"
            if one["anomaly"] is None
            else f"anomaly {one['anomaly']:.2f} at class {one['class']}, by itself: {words[one['backdoored']]}"
        )
        purpose = "" if one["weighed"] else "; for its triggers only, not weighed"
        rows.append((one["name"], f"{said}{purpose} ({finding.seconds.get(one['name'], 0):.1f} s)"))
    return rows


def trigger_rows(finding: Finding, shape: tuple[int, int, int]) -> list[tuple[str, str]]:
    """Return size and success of the suspected classes' triggers, of those that work."""
    found = [finding.reconstructions[c] for c in finding.suspected[:MOST_CLASSES] if finding.reconstructions]
    _, height, width = shape
    return [
        (
            f"trigger for {one.target}",
            f"{one.size:.1f} of {height * width} pixels, leads {100 * one.success:.0f} % of images there",
        )
        for one in found
        if one.success
    ]


def finding_chart(finding: Finding, names: tuple[str, ...]) -> Chart:
    """Return how unusual each class is."""
    return anomaly_chart(names, finding.anomaly.tolist(), finding.threshold, list(finding.suspected))


def found_gallery(finding: Finding, class_names: tuple[str, ...], true: Trigger | None = None) -> Gallery | None:
    """Return the triggers as found: of the suspected classes, or of the least unusual ones beside nothing.

    Args:
        finding: of a scanner that reconstructs triggers; None is returned for others.
        class_names: of the model.
        true: the attack's own trigger, shown beside where it is known; on a grey image.
    """
    if not finding.reconstructions:
        return None
    order = (finding.suspected or (int(finding.anomaly.argmax()),))[:MOST_CLASSES]
    # Of a class that was not searched, or in vain, there is a start or a last try, which would look like a trigger.
    shown = [c for c in order if finding.reconstructions[c].success]
    pictures = [picture for c in shown for picture in _found(finding.reconstructions[c], class_names[c])]
    without = ", ".join(class_names[c] for c in order if c not in shown)
    if true is not None:
        grey = finding.reconstructions[0].pattern.new_full(finding.reconstructions[0].pattern.shape, 0.5)
        stamped = true(grey[None])[0].clamp(0, 1)
        # One that bends or filters an image does nothing to a flat one.
        if not torch.allclose(stamped, grey, atol=1 / 255):
            pictures.append(Picture(caption="the true trigger, on grey", image=stamped))
    return Gallery(
        title="The trigger as found",
        explanation="Reconstructed from the model and clean samples alone, by optimisation: the true one may look"
        " different and still share its effect."
        + (f" No trigger that works was found for {without}." if without else ""),
        pictures=pictures,
    )


def _found(found: Reconstruction, name: str) -> list[Picture]:
    """Return mask, and mask times pattern, of one class."""
    return [
        Picture(caption=f"mask for {name} ({found.size:.1f} pixels)", image=found.mask),
        Picture(caption=f"trigger for {name}", image=found.mask * found.pattern),
    ]
