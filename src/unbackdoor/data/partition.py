"""`Partition`: rows of untrusted data, held clean, held poisoned, or neither."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from unbackdoor.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """What is thought of each row of a set of untrusted images; every row is in one of the three.

    Attributes:
        clean: rows held clean, at least one.
        poisoned: rows held poisoned, at least one.
        undecided: the others.

    Raises:
        InputError: a row is missing or named twice, or no row is held clean or poisoned.
    """

    clean: Int[Tensor, "p"]
    poisoned: Int[Tensor, "q"]
    undecided: Int[Tensor, "r"]

    def __post_init__(self) -> None:
        if not len(self.clean) or not len(self.poisoned):
            raise InputError(
                f"{len(self.clean)} rows are held clean and {len(self.poisoned)} poisoned; at least one of either is"
                " needed"
            )
        rows = torch.cat([self.clean, self.poisoned, self.undecided])
        if not torch.equal(rows.sort().values, torch.arange(len(rows), device=rows.device)):
            raise InputError("a partition names each row once")

    def __len__(self) -> int:
        return len(self.clean) + len(self.poisoned) + len(self.undecided)
