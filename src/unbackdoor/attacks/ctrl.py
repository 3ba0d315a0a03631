"""CTRL: raised coefficients of the cosine transform of U and V, on images of the target class.

Li, Pang, Xi, Du, Ji, Yao, Wang, "An Embarrassingly Simple Backdoor Attack on Self-supervised Learning" (ICCV 2023).
As in BackdoorBench's supervised use: magnitude 100 at (15, 15) and (31, 31) of windows of 32 x 32 pixels, labels
unchanged, 5 % of the training set. Both transforms are linear, so ours adds the fixed pattern that this amounts to.
"""

from __future__ import annotations

from dataclasses import dataclass

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.frequency import check_magnitude, chroma_signal
from unbackdoor.attacks.poisoning import Labels, Poisoning
from unbackdoor.attacks.trigger import Additive

U_AND_V = (1.14, -0.396 - 0.581, 2.029)
"""What a unit of U and one of V add to red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True, kw_only=True)
class CTRL(Poisoning):
    """Fine pattern in the colours of images of the target class; labels unchanged (clean-label).

    Attributes:
        magnitude: added to each coefficient, for pixels from 0 to 255; above 0.
    """

    labels: Labels = "clean"
    poison_rate: float = 0.05
    magnitude: float = 100.0

    def make_trigger(self, given: Given) -> Additive:
        """Make the pattern."""
        check_magnitude(self.magnitude)
        return Additive(signal=chroma_signal(given.train.shape, self.magnitude, U_AND_V))
