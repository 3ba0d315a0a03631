"""D-BR and D-ST whose partition is given, as no sifter is part of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.attacks import POISON
from unbackdoor.data import ImageSet
from unbackdoor.data.partition import Partition
from unbackdoor.purify.d_br import DBR
from unbackdoor.secure.d_st import DST
from unbackdoor.training import Runtime


def every_few(count: int) -> Partition:
    """Hold three of four rows clean, and one of twelve poisoned, whatever they are."""
    rows = torch.arange(count)
    clean, poisoned = rows % 4 != 0, rows % 12 == 0
    return Partition(clean=rows[clean], poisoned=rows[poisoned], undecided=rows[~clean & ~poisoned])


def partly_known(kinds: Tensor, good: int, bad: int) -> Partition:
    """Return what a good sifter finds: one of `good` of the rows without poison, and one of `bad` of those with it."""
    poisoned, clean = (kinds == POISON).nonzero().flatten()[::bad], (kinds != POISON).nonzero().flatten()[::good]
    undecided = torch.ones(len(kinds), dtype=torch.bool)
    undecided[poisoned] = undecided[clean] = False
    return Partition(clean=clean, poisoned=poisoned, undecided=undecided.nonzero().flatten())


@dataclass(frozen=True, kw_only=True)
class GivenDBR(DBR):
    given: Callable[[int], Partition] = every_few

    def partition(self, untrusted: ImageSet, runtime: Runtime, resume: Path | None) -> Partition:
        return self.given(len(untrusted))


@dataclass(frozen=True, kw_only=True)
class GivenDST(DST):
    given: Callable[[int], Partition] = every_few

    def partition(self, untrusted: ImageSet, runtime: Runtime, resume: Path | None) -> Partition:
        return self.given(len(untrusted))
