"""D-BR and D-ST that are told what rows are held to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.attacks import POISON
from unbackdoor.data import ImageSet
from unbackdoor.purify.d_br import DBR
from unbackdoor.secure.d_st import DST
from unbackdoor.sift import Suspicion
from unbackdoor.training import Runtime


def every_few(count: int) -> Suspicion:
    """Hold three of four rows clean, and one of twelve poisoned, whatever they are."""
    rows = torch.arange(count)
    return Suspicion(scores=torch.zeros(count), clean=rows % 4 != 0, poisoned=rows % 12 == 0)


def partly_known(kinds: Tensor, good: int, bad: int) -> Suspicion:
    """Return what a good sifter finds: one of `good` of the rows without poison, and one of `bad` of those with it."""
    clean, poisoned = (torch.zeros(len(kinds), dtype=torch.bool) for _ in range(2))
    clean[(kinds != POISON).nonzero().flatten()[::good]] = True
    poisoned[(kinds == POISON).nonzero().flatten()[::bad]] = True
    return Suspicion(scores=torch.zeros(len(kinds)), clean=clean, poisoned=poisoned)


@dataclass(frozen=True, kw_only=True)
class GivenDBR(DBR):
    given: Callable[[int], Suspicion] = every_few

    def sift(self, untrusted: ImageSet, runtime: Runtime, resume: Path | None) -> Suspicion:
        return self.given(len(untrusted))


@dataclass(frozen=True, kw_only=True)
class GivenDST(DST):
    given: Callable[[int], Suspicion] = every_few

    def sift(self, untrusted: ImageSet, runtime: Runtime, resume: Path | None) -> Suspicion:
        return self.given(len(untrusted))
