"""SCALE-UP: a triggered image keeps its class when all its pixels are multiplied.

Guo, Li, Chen, Guo, Sun, Liu, "SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing Scaled
Prediction Consistency" (ICLR 2023). The score is the share of the factors under which the answer stays what it was, the
product cut off at white. By itself that is the paper's setting without clean samples, and images are suspicious from
about a half on. `by_class` is the one with some, for `filtered.filter_images`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.sift.input_filter import Change, InputFilter, answers
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class ScaleUp(InputFilter):
    """Score images by how often the answer stays when pixels are multiplied.

    Attributes:
        factors: that pixels are multiplied by, each above 1.
        by_class: whether scores are standardised by those of clean images with the same answer, where there are some.
    """

    highest: ClassVar[float | None] = 1.0

    factors: tuple[float, ...] = (3.0, 5.0, 7.0, 9.0, 11.0)
    by_class: bool = False

    def __post_init__(self) -> None:
        if not self.factors or not all(1 < factor < math.inf for factor in self.factors):
            raise InputError(f"ScaleUp: factors must be one or more numbers above 1, found {self.factors}")

    @property
    def standardised(self) -> bool:
        """Whether the option says so."""
        return self.by_class

    def inspect(self, model: Network, images: UInt8[Tensor, "b c h w"], runtime: Runtime) -> Float[Tensor, "b"]:
        """Multiply and compare (see `InputFilter.score`)."""
        first = answers(model, images, runtime)
        kept = [answers(model, images, runtime, times(factor)) == first for factor in self.factors]
        return torch.stack(kept).float().mean(0)


def times(factor: float) -> Change:
    """Return the change that multiplies pixels."""
    return lambda batch: batch * factor
