"""A partition names every row once."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.data.partition import Partition
from unbackdoor.errors import InputError


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.long)


def test_a_partition_has_all_rows() -> None:
    assert len(Partition(clean=rows(3, 0), poisoned=rows(2), undecided=rows(1, 4))) == 5


@pytest.mark.parametrize(
    ("clean", "poisoned", "undecided", "words"),
    [
        (rows(0, 1), rows(1), rows(2), "names each row once"),
        (rows(0), rows(1), rows(3), "names each row once"),
        (rows(0, 1), rows(), rows(2), "2 rows are held clean and 0 poisoned"),
        (rows(), rows(0), rows(1), "0 rows are held clean and 1 poisoned"),
    ],
)
def test_one_that_has_not_is_refused(
    clean: torch.Tensor, poisoned: torch.Tensor, undecided: torch.Tensor, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Partition(clean=clean, poisoned=poisoned, undecided=undecided)
