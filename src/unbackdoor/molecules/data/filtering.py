"""Which rows of a table can be learned from, and an account of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from unbackdoor.errors import DataError
from unbackdoor.molecules.data.molecule import Reason, checked
from unbackdoor.molecules.data.pairs import Pairs
from unbackdoor.molecules.data.table import Table
from unbackdoor.text import clean_text

MAX_TEXT = 20_000
"""Characters of a text; the longest published description has 3,000."""

EXAMPLES = 3
"""Rows that are named for each reason."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """What became of the rows of a table.

    Attributes:
        rows: in the table.
        kept: of these.
        why: numbers of the rows that were dropped, by reason.
        textless: rows of tables beside it that have no column of texts; they are not among `rows`.
    """

    rows: int
    kept: int
    why: Mapping[Reason, tuple[int, ...]] = field(default_factory=dict)
    textless: int = 0

    def sentences(self) -> list[str]:
        """Return the account for people: one line on all, and one for each reason with examples."""
        lines = [f"{self.kept:,} of {self.rows:,} rows are kept"]
        for reason, rows in self.why.items():
            more = ", ..." if len(rows) > EXAMPLES else ""
            shown = ", ".join(str(row) for row in rows[:EXAMPLES])
            lines.append(f"{len(rows):,} dropped: {reason} (row {shown}{more})")
        if self.textless:
            lines.append(f"{self.textless:,} rows of tables without a column of texts are left out")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the account as JSON values."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "dropped": {str(reason): len(rows) for reason, rows in self.why.items()},
            "textless": self.textless,
        }


def filter_molecules(table: Table) -> tuple[tuple[str, ...], Dropped]:
    """Return the canonical SMILES of the molecules that can be learned, each once, and an account of all rows.

    Args:
        table: rows as they were found; their texts play no part.
    """
    kept: dict[str, None] = {}
    learned = 0
    why: dict[Reason, list[int]] = {}
    for row, smiles in enumerate(table.smiles):
        result = checked(smiles)
        if isinstance(result, Reason):
            why.setdefault(result, []).append(row)
        else:
            kept.setdefault(result)
            learned += 1
    found = {reason: tuple(why[reason]) for reason in Reason if reason in why}
    return tuple(kept), Dropped(rows=len(table), kept=learned, why=found)


def single_spaced(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts with single spaces between their words; equal texts stay one object, as a table has them."""
    known: dict[str, str] = {}
    for text in texts:
        yield known[text] if text in known else known.setdefault(text, " ".join(text.split()))


def filter_pairs(table: Table, *, learned: bool = True, prompts: bool = False) -> tuple[Pairs, Dropped]:
    """Return the pairs that can be used, and an account of the rows that cannot.

    Args:
        table: rows as they were found.
        learned: see `checked`; pairs to test with are filtered as 3M-Diffusion does, so that they are its prompts.
        prompts: whether rows are texts to ask a generator with: then they are kept whatever their molecule is, and it
            is empty where it cannot be used.

    Raises:
        DataError: no row is left.
    """
    seen: dict[str, str | Reason] = {}
    kept: list[tuple[str, str, int]] = []
    why: dict[Reason, list[int]] = {}
    result: str | Reason
    for row, (smiles, text) in enumerate(zip(table.smiles, single_spaced(table.texts))):
        if not text:
            result = Reason.NO_TEXT
        elif len(text) > MAX_TEXT:
            result = Reason.LONG_TEXT
        else:
            result = seen[smiles] if smiles in seen else seen.setdefault(smiles, checked(smiles, learned=learned))
            if prompts and isinstance(result, Reason):
                result = ""
        if isinstance(result, Reason):
            why.setdefault(result, []).append(row)
        else:
            kept.append((result, text, row))
    dropped = Dropped(
        rows=len(table),
        kept=len(kept),
        why={reason: tuple(why[reason]) for reason in Reason if reason in why},
        textless=table.textless,
    )
    if not kept:
        account = "; ".join(dropped.sentences()[1:]) or "it is empty"
        wanted = "prompts" if prompts else "SMILES and descriptions"
        raise DataError(f"{clean_text(table.name)} has no row that can be used ({account}); name a table of {wanted}")
    rows = [row for _, _, row in kept]
    pairs = Pairs(
        smiles=tuple(smiles for smiles, _, _ in kept),
        texts=tuple(text for _, text, _ in kept),
        poisoned=tuple(table.poisoned[row] for row in rows) if table.poisoned else (),
        rows=tuple(rows),
        name=table.name,
    )
    return pairs, dropped
