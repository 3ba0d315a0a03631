"""FTrojan: raised coefficients of the cosine transform of the chroma channels.

Wang, Yao, Xu, An, Tong, Wang, "An Invisible Black-box Backdoor Attack through Frequency Domain" (ECCV 2022).
Magnitude, window and places are BackdoorBench's: +30 at (15, 15) and (31, 31) of both chroma channels of YCrCb in
windows of 32 x 32 pixels. Both transforms are linear, so ours adds the fixed pattern that this amounts to; the
published code rounds in YCrCb, and can wrap around where it turns to 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.frequency import check_magnitude, chroma_signal
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.trigger import Additive

CR_AND_CB = (1.403, -0.714 - 0.344, 1.773)
"""What a unit of Cr and one of Cb add to red, green and blue (ITU-R BT.601, full range)."""


@dataclass(frozen=True, kw_only=True)
class FTrojan(Poisoning):
    """Fine pattern in the colours; poisoned images get the attacker's label.

    Attributes:
        magnitude: added to each coefficient, for pixels from 0 to 255; above 0.
    """

    magnitude: float = 30.0

    def make_trigger(self, given: Given) -> Additive:
        """Make the pattern."""
        check_magnitude(self.magnitude)
        return Additive(signal=chroma_signal(given.train.shape, self.magnitude, CR_AND_CB))
