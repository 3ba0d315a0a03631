"""What a page shows of a scan."""

from __future__ import annotations

import torch

from unbackdoor.report import found_gallery
from unbackdoor.scan import Finding, Reconstruction

NAMES = ("cat", "dog", "owl")


def found(suspected: tuple[int, ...], success: tuple[float, ...]) -> Finding:
    """Return a finding with a trigger for each class, of that success."""
    made = tuple(
        Reconstruction(target=c, mask=torch.rand(1, 4, 4), pattern=torch.rand(3, 4, 4), success=share)
        for c, share in enumerate(success)
    )
    return Finding(
        backdoored=bool(suspected),
        suspected=suspected,
        calibrated=False,
        anomaly=torch.tensor([1.0, 2.0, 3.0]),
        threshold=3.5,
        reconstructions=made,
    )


def test_a_class_that_was_not_searched_has_no_trigger_to_show() -> None:
    """Its mask is the noise that the search would have begun with."""
    gallery = found_gallery(found((2, 0), (1.0, 0.9, 0.0)), NAMES)
    assert gallery
    assert [picture.caption.split(" (")[0] for picture in gallery.pictures] == ["mask for cat", "trigger for cat"]
    assert "No trigger that works was found for owl." in gallery.explanation
    nothing = found_gallery(found((), (1.0, 0.9, 0.0)), NAMES)
    assert nothing
    assert nothing.pictures == []
    whole = found_gallery(found((1,), (1.0, 0.9, 0.0)), NAMES)
    assert whole
    assert len(whole.pictures) == 2
    assert "No trigger" not in whole.explanation
