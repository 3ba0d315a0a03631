"""`Table`: rows of SMILES and text as they were found."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows as they were found, unchecked.

    Attributes:
        smiles: one a row, text from outside; empty where it is missing.
        texts: descriptions, text from outside; empty where they are missing.
        poisoned: which rows the file says to be poisoned; empty if it does not say.
        name: of the source, for messages.
        textless: rows of the source that are not here, as their tables have no column of texts.
    """

    smiles: tuple[str, ...]
    texts: tuple[str, ...]
    poisoned: tuple[bool, ...] = ()
    name: str
    textless: int = 0

    def __len__(self) -> int:
        return len(self.smiles)

    def subset(self, rows: Sequence[int]) -> Table:
        """Return some of the rows, in the order given."""
        return Table(
            smiles=tuple(self.smiles[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            poisoned=tuple(self.poisoned[row] for row in rows) if self.poisoned else (),
            name=self.name,
            textless=self.textless,
        )

    def digest(self) -> str:
        """Return the SHA-256 of all rows, 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for row in zip(self.smiles, self.texts):
            for text in row:
                payload = text.encode("utf-8", "surrogatepass")
                digest.update(len(payload).to_bytes(8, "little") + payload)
        return digest.hexdigest()


def joined(tables: Sequence[Table]) -> Table:
    """Return the rows of all tables, one after the other."""
    told = any(table.poisoned for table in tables)
    flags = [table.poisoned or (False,) * len(table) for table in tables]
    return Table(
        smiles=tuple(smiles for table in tables for smiles in table.smiles),
        texts=tuple(text for table in tables for text in table.texts),
        poisoned=tuple(flag for part in flags for flag in part) if told else (),
        name=" + ".join(dict.fromkeys(table.name for table in tables)),
        textless=sum(table.textless for table in tables),
    )
