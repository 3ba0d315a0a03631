"""TeCo: a triggered image withstands some corruptions far better than others.

Liu, Li, Wang, Hu, Ye, Jin, Wu, Xiao, "Detecting Backdoors During the Inference Stage Based on Corruption Robustness
Consistency" (CVPR 2023). Of each kind of corruption, the severity from which on the answer is another is noted, 1 to 5,
or 6 if it stays. The score is the standard deviation of these over the kinds: a clean image gives way to all at about
the same severity, while a trigger withstands, say, brightness, and vanishes with blur.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unbackdoor.models import Network
from unbackdoor.sift.corruptions import KINDS, SEVERITIES, Corruption, Draws
from unbackdoor.sift.input_filter import InputFilter, answers
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class TeCo(InputFilter):
    """Score images by how unequally they withstand corruptions of different kinds."""

    def inspect(self, model: Network, images: UInt8[Tensor, "b c h w"], runtime: Runtime) -> Float[Tensor, "b"]:
        """Corrupt and compare (see `InputFilter.score`)."""
        first = answers(model, images, runtime)
        ends = []
        for name, kind in KINDS.items():
            ends.append(_end(model, images, first, kind, Draws.of(images, name, runtime), runtime))
        return torch.stack(ends).float().std(0, correction=0)


def _end(
    model: Network,
    images: UInt8[Tensor, "b c h w"],
    first: Int[Tensor, "b"],
    kind: Corruption,
    draws: Draws,
    runtime: Runtime,
) -> Int[Tensor, "b"]:
    """Return for each image the weakest severity of a kind at which the answer is another, one more if none."""
    ends = torch.full((len(images),), SEVERITIES + 1)
    left = torch.arange(len(images))
    for severity in range(1, SEVERITIES + 1):
        # Those whose answer has changed are done.
        if not len(left):
            break
        change = partial(kind, severity=severity, draws=draws)
        changed = answers(model, images[left.to(images.device)], runtime, change) != first[left]
        ends[left[changed]] = severity
        left, draws = left[~changed], draws.only((~changed).nonzero().squeeze(1))
    return ends
