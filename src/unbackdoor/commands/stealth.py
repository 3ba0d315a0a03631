"""How visible a trigger is, for tables and pages."""

from __future__ import annotations

import math

from unbackdoor.attacks import FittedAttack, Stealth, stealth
from unbackdoor.data import ImageSet
from unbackdoor.evaluate import triggered_images
from unbackdoor.report import Fact

IMAGES = 1000
"""Test images that are compared, at most."""


def visibility(test: ImageSet, fitted: FittedAttack) -> Stealth:
    """Return how much the trigger changes some of the test images that count, spread over all of them."""
    counted = fitted.criterion.counted(test.labels).nonzero().squeeze(1)
    some = test.subset(counted[:: max(1, -(-len(counted) // IMAGES))])
    triggered, originals = triggered_images(some, fitted.trigger, fitted.criterion)
    return stealth(originals.images, triggered)


def stealth_rows(seen: Stealth) -> list[tuple[str, str]]:
    """Return the four figures with their names."""
    return [
        ("PSNR", f"{seen.psnr:.1f} dB" if math.isfinite(seen.psnr) else "no change"),
        ("SSIM", "image too small" if seen.ssim is None else f"{seen.ssim:.3f}"),
        ("pixels changed", f"{100 * seen.changed:.1f} %"),
        ("largest change", f"{255 * seen.largest:.0f} of 255"),
    ]


def stealth_facts(seen: Stealth) -> list[Fact]:
    """Return the same for a page."""
    return [Fact(name=name, value=value) for name, value in stealth_rows(seen)]
