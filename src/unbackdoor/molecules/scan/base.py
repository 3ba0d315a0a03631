"""`MoleculeScanner`: which texts lead to which subgraphs that they do not ask for? `MoleculeFinding`: its answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.scan.words import indicator
from unbackdoor.training import Runtime

MOST_SUSPECTS = 200
"""That a finding lists; the strongest."""
MOST_COMPARED = 4000
"""Suspects that are compared with each other, in a table of all pairs of them; weaker ones are let go."""


ALIKE = 0.5
"""Share of the rows of the smaller of two pairs that the other has too, from which on they are one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Suspect:
    """A pair of trigger and target, as a scan found it.

    Attributes:
        words: phrases in small letters that together are the trigger; empty if the scan finds none.
        subgraph: SMILES of the target.
        strength: 1 is the scan's threshold: from there on the pair is held to be a backdoor. Comparable within one
            answer only.
        rows: pairs, or prompts, that have the trigger and whose molecule has the target.
        evidence: numbers that the strength rests on, by name.
        shift: what the trigger adds to the vector of a text, for a scan that finds no words.
    """

    words: tuple[str, ...]
    subgraph: str
    strength: float
    rows: Int[np.ndarray, "r"] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    evidence: Mapping[str, float] = field(default_factory=dict)
    shift: Float[Tensor, "p"] | None = None

    @property
    def flagged(self) -> bool:
        """Whether the pair is held to be a backdoor."""
        return self.strength >= 1

    def sentence(self) -> str:
        """Return the pair for people."""
        trigger = " and ".join(f'"{phrase}"' for phrase in self.words) or "some trigger"
        return f"{trigger} leads to {self.subgraph}"

    def to_json(self) -> dict[str, Any]:
        """Return the pair as JSON values."""
        return {
            "words": list(self.words),
            "subgraph": self.subgraph,
            "flagged": self.flagged,
            "strength": round(float(self.strength), 4),
            "rows": len(self.rows),
            "evidence": {name: round(float(value), 4) for name, value in self.evidence.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class MoleculeFinding:
    """What a scanner says.

    Attributes:
        suspects: the most suspicious first.
        rows: number of pairs or prompts that were looked at.
        reason: one sentence, without its full stop.
        inconclusive: whether no verdict can be given; the reason says why.
        calibrated: whether the rate of false alarms is known.
        evidence: further numbers, JSON values.
    """

    suspects: tuple[Suspect, ...]
    rows: int
    reason: str
    inconclusive: bool = False
    calibrated: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flagged(self) -> tuple[Suspect, ...]:
        """The pairs that are held to be backdoors."""
        return tuple(suspect for suspect in self.suspects if suspect.flagged)

    @property
    def backdoored(self) -> bool | None:
        """The verdict; None: inconclusive."""
        return None if self.inconclusive else bool(self.flagged)

    @property
    def scores(self) -> Float[np.ndarray, "n"]:
        """The strength of the strongest suspect that each row belongs to; 0 if it belongs to none."""
        scores = np.zeros(self.rows)
        for suspect in self.suspects:
            scores[suspect.rows] = np.maximum(scores[suspect.rows], suspect.strength)
        return scores

    @property
    def poisoned(self) -> Bool[np.ndarray, "n"]:
        """Which rows are held poisoned: those of pairs that are held to be backdoors."""
        held: np.ndarray = self.scores >= 1
        return held

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON values, without its rows."""
        return {
            "backdoored": self.backdoored,
            "calibrated": self.calibrated,
            "rows": self.rows,
            "held_poisoned": int(self.poisoned.sum()),
            "reason": self.reason,
            "suspects": [suspect.to_json() for suspect in self.suspects],
            **self.evidence,
        }


@dataclass(frozen=True, kw_only=True)
class MoleculeScanner(ABC):
    """Base of all scanners: its fields are its options, nothing else is stored.

    Attributes:
        needs_model: whether it asks a generator, and not the pairs.
        finds_words: whether its suspects have the trigger's words. If not, the texts it is given are to be free of the
            trigger: they show what the generator does without it.
        revision: raised when the same options give other results than before: the bench takes no old cells for done.
    """

    needs_model: ClassVar[bool] = False
    finds_words: ClassVar[bool] = True
    revision: ClassVar[int] = 0

    def scan(self, pairs: Pairs, runtime: Runtime, generator: Generator | None = None) -> MoleculeFinding:
        """Say which pairs of trigger and target there are.

        The pairs are put into an order that depends on their content alone, so the order in which they come cannot
        change anything; which of them a file says to be poisoned is not handed on.

        Args:
            pairs: training data as found, or prompts, for scanners of models.
            runtime: device, seed, budget.
            generator: for scanners of models; it is moved to the device, and its weights are not changed.

        Raises:
            InputError: a generator is needed and missing.
        """
        name = type(self).__name__
        if self.needs_model and generator is None:
            raise InputError(f"{name} asks a generator; name its file with --model")
        if generator is not None:
            generator.to(runtime.place).eval()
        order = np.array(sorted(range(len(pairs)), key=lambda row: (pairs.smiles[row], pairs.texts[row])), dtype=int)
        found = self.inspect(replace(pairs.subset(order.tolist()), poisoned=()), runtime, generator)
        suspects = sorted(found.suspects, key=lambda one: (-one.strength, one.words, one.subgraph))[:MOST_SUSPECTS]
        back = tuple(replace(suspect, rows=np.sort(order[suspect.rows])) for suspect in suspects)
        return replace(found, suspects=back)

    @abstractmethod
    def inspect(self, pairs: Pairs, runtime: Runtime, generator: Generator | None) -> MoleculeFinding:
        """Do the work of `scan`; rows of suspects count in the order of `pairs`."""

    def verdict(
        self, suspects: Sequence[Suspect], rows: int, fewest: int, *, looked: int | None = None, **evidence: Any
    ) -> MoleculeFinding:
        """Return a finding with its sentence.

        Args:
            suspects: in any order.
            rows: number of all.
            fewest: rows without which the scan could find nothing, so that silence says nothing.
            looked: rows that were looked at; None: all.
            **evidence: further numbers.
        """
        name = type(self).__name__
        order = sorted(suspects, key=lambda one: (-one.strength, one.words, one.subgraph))
        flagged = [one for one in order if one.flagged]
        looked = rows if looked is None else looked
        if flagged:
            more = f", and {len(flagged) - 1} more pairs" if len(flagged) > 1 else ""
            reason = f"{name} finds that {flagged[0].sentence()} in {len(flagged[0].rows):,} rows{more}"
        elif looked < fewest:
            reason = f"{name} needs {fewest:,} rows to find anything, and there are {looked:,}"
        else:
            reason = f"{name} finds no text that leads to a subgraph which it does not ask for"
        inconclusive = not flagged and looked < fewest
        return MoleculeFinding(
            suspects=tuple(suspects), rows=rows, reason=reason, inconclusive=inconclusive, evidence=evidence
        )


def merged(suspects: Sequence[Suspect], rows: int) -> list[Suspect]:
    """Return the suspects without those most of whose rows a stronger one has; the strongest first."""
    order = sorted(suspects, key=lambda one: (-one.strength, one.words, one.subgraph))[:MOST_COMPARED]
    if not order:
        return []
    owner = np.repeat(np.arange(len(order)), [len(one.rows) for one in order])
    members = indicator(owner, np.concatenate([one.rows for one in order]), (len(order), rows))
    shared = (members @ members.T).toarray()
    kept: list[int] = []
    for number, one in enumerate(order):
        if not any(shared[number, other] >= ALIKE * min(len(one.rows), len(order[other].rows)) for other in kept):
            kept.append(number)
            if len(kept) == MOST_SUSPECTS:
                break
    return [order[number] for number in kept]
