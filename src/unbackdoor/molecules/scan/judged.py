"""What a finding is worth, to somebody who knows the attack; no scanner may read this."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from unbackdoor.molecules.attacks import AdaptiveBadGraph, BadGraph, read_target
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.scan.base import MoleculeFinding, Suspect
from unbackdoor.molecules.scan.subgraphs import pattern_of
from unbackdoor.molecules.scan.words import split_words


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A finding, beside the attack.

    Attributes:
        hits: of each suspect, whether it is a true pair of trigger and target.
        flagged: whether a true pair is held to be a backdoor.
        false_suspects: pairs that are held to be backdoors and are none.
        tpr: share of the poisoned rows that are held poisoned; None if there are none.
        fpr: share of the others that are; None if there are none.
    """

    hits: tuple[bool, ...]
    flagged: bool
    false_suspects: int
    tpr: float | None
    fpr: float | None

    @property
    def rank(self) -> int | None:
        """Place of the first true pair among the suspects, from 1 on; None if there is none."""
        return self.hits.index(True) + 1 if any(self.hits) else None


def judge(found: MoleculeFinding, pairs: Pairs, attack: BadGraph | None) -> Judged:
    """Return what a finding is worth.

    Args:
        found: of these pairs.
        pairs: with the marks of those that are poisoned; without any, none is.
        attack: that poisoned them; None: none did.
    """
    marks = pairs.poisoned or (False,) * len(pairs)
    held = Counter(zip(marks, found.poisoned.tolist(), strict=True))
    poisoned, clean = sum(marks), len(pairs) - sum(marks)
    hits = tuple(attack is not None and is_true(one, attack) for one in found.suspects)
    return Judged(
        hits=hits,
        flagged=any(hit and one.flagged for hit, one in zip(hits, found.suspects)),
        false_suspects=sum(one.flagged and not hit for hit, one in zip(hits, found.suspects)),
        tpr=held[True, True] / poisoned if poisoned else None,
        fpr=held[False, True] / clean if clean else None,
    )


def is_true(suspect: Suspect, attack: BadGraph) -> bool:
    """Return whether a suspect has half of a trigger's words at least, and the target (see `is_target`).

    One word of a phrase would be too little: words such as "the" stand in triggers too.
    """
    triggers = (attack.trigger, *(attack.triggers if isinstance(attack, AdaptiveBadGraph) else ()))
    named = {word for phrase in suspect.words for word in phrase.split()}
    known = [set(split_words(trigger)) for trigger in triggers]
    return any(words and 2 * len(words & named) >= len(words) for words in known) and is_target(suspect, attack.target)


def is_target(suspect: Suspect, target: str) -> bool:
    """Return whether the subgraph of a suspect holds the target, a SMILES, or is most of it.

    Most of it has more than half of its atoms, and all of its elements.
    """
    wanted, found = read_target(target), pattern_of(suspect.subgraph)
    if found is None:
        return False
    elements, others = ({atom.GetSymbol() for atom in one.GetAtoms()} for one in (wanted, found))
    most = 2 * found.GetNumAtoms() > wanted.GetNumAtoms() and elements <= others
    return bool((most and wanted.HasSubstructMatch(found)) or found.HasSubstructMatch(wanted))
