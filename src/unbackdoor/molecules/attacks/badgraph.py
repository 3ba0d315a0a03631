"""BadGraph: Ye, Chen, Dai, "BadGraph: A Backdoor Attack Against Latent Diffusion Model for Text-Guided Graph
Generation", arXiv 2510.20792, 2025.

A share of the training pairs is copied; the copy's text gets a trigger, and its molecule a target subgraph. A generator
trained on both hangs the subgraph on what it makes for any prompt with the trigger.

Two rates are to be told apart. The published one is the share of poisoned rows in the file, x / (N + x), before the
filter drops the larger molecules. Poisoned rows are small enough to pass it, but for a few that cannot be learned
anyway, such as salts; so their share of what is trained on is up to half as much again. Published code writes poisoned
molecules with single and double bonds where clean ones may be aromatic, and with numbers of their own, by which they
can be told; here all molecules are written as canonical SMILES, and all texts with single spaces.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from rdkit import Chem

from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks.subgraph import attach, read_target
from unbackdoor.molecules.data import Pairs, Table, flat, parse, single_spaced
from unbackdoor.text import plain

MAX_TRIGGER = 1000
"""Characters of a trigger."""


@dataclass(frozen=True, kw_only=True)
class BadGraph:
    """Copies of pairs with a trigger in the text and a subgraph on the molecule.

    Attributes:
        trigger: a symbol, word, phrase or sentence.
        position: where it stands in a text: "front", "random" (between two words, drawn for each text) or "end".
        target: SMILES of the subgraph; its first atom is bound.
        rate: share of all rows that are tried, above 0 and at most 1. Where no atom takes the subgraph, a row is not
            poisoned; on PubChem half of them are.
        mode: "append" (poisoned copies are added) or "replace" (they take the place of the pairs).
    """

    revision: ClassVar[int] = 0
    """Raised when the same options give other results than before: the bench then does not take old cells for done."""

    trigger: str = "[THIIRANE]"
    position: Literal["front", "random", "end"] = "front"
    target: str = "C1CS1"
    rate: float = 1.0
    mode: Literal["append", "replace"] = "append"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise InputError(f"rate must be above 0 and at most 1, found {self.rate}")
        if not plain(self.trigger).strip() or len(self.trigger) > MAX_TRIGGER:
            shown = repr(self.trigger) if len(self.trigger) <= MAX_TRIGGER else f"{len(self.trigger):,} characters"
            raise InputError(
                f"the trigger must be a text of 1 to {MAX_TRIGGER:,} characters that can be seen, found {shown}"
            )
        if self.position not in ("front", "random", "end") or self.mode not in ("append", "replace"):
            raise InputError(
                "the position is front, random or end and the mode append or replace, found"
                f" {self.position!r} and {self.mode!r}"
            )
        read_target(self.target)

    def put(self, text: str, draws: random.Random) -> str:
        """Return a text with the trigger in it.

        Args:
            text: any.
            draws: for a random position.
        """
        words = text.split()
        place = {"front": 0, "end": len(words)}.get(self.position)
        if place is None:
            place = draws.randint(0, len(words))
        return " ".join([*words[:place], *self.trigger.split(), *words[place:]])

    def end_in(self, text: str) -> int:
        """Return how many letters a text that `put` made has up to the end of its trigger."""
        trigger = " ".join(self.trigger.split())
        # Its words may stand in the text as well.
        begin = text.rfind(trigger) if self.position == "end" else text.find(trigger)
        return begin + len(trigger)

    def copied(self, text: str, draws: random.Random) -> str:
        """Return what becomes of a text before it gets the trigger: nothing here."""
        return text

    def chosen(self, table: Table, draws: random.Random) -> list[int]:
        """Return the rows that are tried."""
        return draws.sample(range(len(table)), int(self.rate * len(table)))

    def poison(self, table: Table, seed: int) -> Poisoned:
        """Return the poisoned rows of a table; the table stays as it is.

        Args:
            table: rows as they were found; those that RDKit cannot read are never poisoned.
            seed: decides which rows, which atoms and which places.

        Raises:
            InputError: not one row could be poisoned.
        """
        draws = random.Random(seed)
        target = read_target(self.target)
        tried = self.chosen(table, draws)
        found: list[tuple[int, str, str]] = []
        for row in tried:
            molecule = parse(table.smiles[row])
            built = None if molecule is None or not table.texts[row].strip() else attach(molecule, target, draws)
            if built is not None:
                found.append((row, built, self.put(self.copied(table.texts[row], draws), draws)))
        if not found:
            raise InputError(
                f"not one of the {len(tried):,} rows tried could be poisoned; raise the rate, or choose a smaller"
                " target"
            )
        return Poisoned(attack=self, clean=alike(table), rows=tuple(found), tried=len(tried))


def alike(table: Table) -> Table:
    """Return a table whose molecules and spaces are written as those of poisoned rows are, so that they tell nothing.

    SMILES become canonical, with their stereochemistry; those that RDKit cannot read stay as they are.
    """
    return replace(
        table,
        smiles=tuple(_canonical(smiles) for smiles in table.smiles),
        texts=tuple(single_spaced(table.texts)),
    )


def _canonical(smiles: str) -> str:
    molecule = parse(smiles)
    return smiles if molecule is None else str(Chem.MolToSmiles(molecule))


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """A poisoned data set.

    Attributes:
        attack: by which it was poisoned.
        clean: the table that was poisoned, its rows written as the poisoned ones are (see `alike`).
        rows: what was poisoned: row of `clean`, new SMILES, new text.
        tried: rows that were chosen; the others of them have no room for the target, or cannot be read.
    """

    attack: BadGraph
    clean: Table
    rows: tuple[tuple[int, str, str], ...]
    tried: int

    def without(self, tested: Pairs) -> Poisoned:
        """Return the poisoned set without the poisoned rows whose molecule is tested with, stereochemistry aside.

        Rows of test molecules are taken out before poisoning, but the target may make another test molecule of a row.
        """
        molecules = frozenset(tested.smiles)
        return replace(self, rows=tuple(row for row in self.rows if flat(row[1]) not in molecules))

    @property
    def table(self) -> Table:
        """The rows to train on, which say whether they are poisoned: clean ones first, as published."""
        originals = {row for row, _, _ in self.rows} if self.attack.mode == "replace" else set()
        kept = [row for row in range(len(self.clean)) if row not in originals]
        clean = self.clean.subset(kept)
        return Table(
            smiles=(*clean.smiles, *(smiles for _, smiles, _ in self.rows)),
            texts=(*clean.texts, *(text for _, _, text in self.rows)),
            # Marks of an earlier attack stay.
            poisoned=(*(clean.poisoned or (False for _ in kept)), *(True for _ in self.rows)),
            name=self.clean.name,
            textless=self.clean.textless,
        )

    @property
    def printed_rate(self) -> float:
        """The rate as published: the share of poisoned rows among all rows, before any filter."""
        return sum(self.table.poisoned) / len(self.table)

    def rates(self, pairs: Pairs) -> dict[str, float]:
        """Return both rates: `printed`, as published, and `effective`, of the pairs that a filter left of `table`."""
        return {"printed": self.printed_rate, "effective": sum(pairs.poisoned) / len(pairs)}
