"""What is trained on and what is tested with: no test molecule is ever among the training pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from unbackdoor.errors import DataError
from unbackdoor.molecules.data.filtering import Dropped, filter_molecules, filter_pairs
from unbackdoor.molecules.data.molecule import flat
from unbackdoor.molecules.data.pairs import Pairs
from unbackdoor.molecules.data.reading import read_table, tested_split
from unbackdoor.molecules.data.table import Table, joined

NOTHING = Table(smiles=(), texts=(), name="")

TEST_PART = 5
"""One in so many molecules of a source without splits is for testing."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Pairs for one run.

    Attributes:
        train: to learn from; none has a molecule of `test`, stereochemistry aside.
        test: prompts with their own molecules.
        dropped: what became of the rows of the training source and of the test source.
        removed: training pairs that were taken out because their molecule is in `test`.
        marked: pairs that are said to be poisoned, and so are not tested with.
    """

    train: Pairs
    test: Pairs
    dropped: tuple[Dropped, Dropped]
    removed: int
    marked: int

    def sentences(self) -> list[str]:
        """Return the account of all rows, for people."""
        lines = [f"training: {line}" for line in self.dropped[0].sentences()]
        lines += [f"testing: {line}" for line in self.dropped[1].sentences()]
        lines.append(f"{self.removed:,} training pairs were taken out, as their molecules are tested with")
        return (
            [*lines, f"{self.marked:,} pairs that are marked as poisoned are not tested with"] if self.marked else lines
        )


def choose_pairs(data: Sequence[str], test: str | None) -> Chosen:
    """Read pairs to train on and pairs to test with.

    Args:
        data: sources (see `read_table`); all of their rows but those of test molecules are trained on.
        test: source whose test split is tested with; None: that of `data`. Where that is one source without splits, a
            fixed fifth of its molecules is the test part, whatever the order of the rows.

    Raises:
        DataError: a source that cannot be read, or nothing is left to train on or to test with.
    """
    if not data:
        raise DataError("no data to train on; name a table of SMILES and descriptions")
    pairs, dropped = filter_pairs(joined([read_table(source, "all") for source in data]))
    if test is None and tested_split(data[0]) is None:
        found = pairs.where(_is_tested)
        dropped_test = Dropped(rows=len(found), kept=len(found))
        tested = found.unmarked()
        train = pairs.without(found)
    else:
        found, dropped_test = filter_pairs(read_table(test or data[0], "test"), learned=False)
        tested = found.unmarked()
        train = pairs.without(tested)
    if not len(train) or not len(tested):
        what = "to train on" if len(tested) else "to test with"
        raise DataError(f"no pair of {pairs.name} is left {what}; name more data")
    return Chosen(
        train=train,
        test=tested,
        dropped=(dropped, dropped_test),
        removed=len(pairs) - len(train),
        marked=len(found) - len(tested),
    )


def training_rows(data: Sequence[str], test: str | None) -> tuple[Table, Pairs]:
    """Return all rows to train on as they are, those of test molecules excepted, and the pairs to test with.

    Args:
        data: see `choose_pairs`.
        test: see `choose_pairs`.

    Raises:
        DataError: see `choose_pairs`.
    """
    tested = choose_pairs(data, test).test
    molecules = frozenset(tested.smiles)
    table = joined([read_table(source, "all") for source in data])
    return table.subset([row for row, smiles in enumerate(table.smiles) if flat(smiles) not in molecules]), tested


@dataclass(frozen=True, kw_only=True)
class Alone:
    """Molecules without texts, for the auto-encoder.

    Attributes:
        smiles: canonical, each once; none is among the pairs to train on or to test with.
        dropped: what became of the rows of their source.
        name: of the source.
    """

    smiles: tuple[str, ...]
    dropped: Dropped
    name: str

    def sentences(self) -> list[str]:
        """Return the account of all rows, for people."""
        lines = [f"molecules without texts: {line}" for line in self.dropped.sentences()]
        return [*lines, f"{len(self.smiles):,} different ones are in no pair to train on or to test with"]


def molecules_alone(sources: Sequence[str], train: Pairs, tested: Pairs) -> Alone:
    """Read molecules whose texts, if they have any, play no part.

    Args:
        sources: see `read_table`; all of their rows are read.
        train: pairs to train on, whose molecules are known already.
        tested: pairs to test with, whose molecules must not be learned.

    Raises:
        DataError: a source that cannot be read.
    """
    table = joined([read_table(source, "all", wanted="molecules") for source in sources]) if sources else NOTHING
    molecules, dropped = filter_molecules(table)
    known = {*train.smiles, *tested.smiles}
    return Alone(smiles=tuple(one for one in molecules if one not in known), dropped=dropped, name=table.name)


def _is_tested(smiles: str) -> bool:
    return hashlib.sha256(smiles.encode()).digest()[0] % TEST_PART == 0
