"""The texts of LatentPurification: one half sets a repair, and the other says how good it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.metrics import holds
from unbackdoor.molecules.scan import Suspect
from unbackdoor.molecules.scan.subgraphs import pattern_of
from unbackdoor.molecules.scan.words import without
from unbackdoor.training import Runtime


@dataclass(frozen=True)
class Half:
    """Texts that a repair is set by, or texts that it is tried with.

    Attributes:
        triggered: with the trigger; without it too, for a trigger that is known as a shift alone.
        clean: the same without it.
        others: other texts without it.
        asking: texts without it whose molecule has the subgraph all the same.
    """

    triggered: list[str] = field(default_factory=list)
    clean: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    asking: list[str] = field(default_factory=list)


def halves_of(suspect: Suspect, pairs: Pairs, prompts: int, others: int, runtime: Runtime) -> tuple[Half, Half]:
    """Return the texts that set a repair, and those that it is tried with; no text is in both.

    Args:
        suspect: trigger and target; any texts show a trigger that is known as a shift alone.
        pairs: rows of the suspect count in them.
        prompts: texts with the trigger, at most.
        others: other texts, and texts that ask for the subgraph, at most.
        runtime: its seed draws the texts.
    """
    draws = np.random.default_rng(runtime.generator("purify", suspect.words).initial_seed())
    rows = suspect.rows if suspect.words else np.arange(len(pairs))
    triggered: dict[str, str] = {}
    for row in draws.permutation(rows):
        text = " ".join(pairs.texts[row].split())
        less = without(text, suspect.words)
        if less and (less != text or not suspect.words) and len(triggered) < prompts:
            triggered.setdefault(less, text)
    halves = Half(), Half()
    # A clean text that was copied and poisoned stays on the side of its copy.
    side_of: dict[str, int] = {}
    for number, (less, text) in enumerate(triggered.items()):
        side_of[less] = int(number >= len(triggered) // 2)
        halves[side_of[less]].clean.append(less)
        halves[side_of[less]].triggered.append(text)
    target = pattern_of(suspect.subgraph)
    draws = np.random.default_rng(runtime.generator("others", suspect.words).initial_seed())
    seen: set[str] = set()
    for row in draws.permutation(np.setdiff1d(np.arange(len(pairs)), suspect.rows)):
        text = " ".join(pairs.texts[row].split())
        if text in seen or without(text, suspect.words) != text:
            continue
        half = halves[side_of.get(text, len(seen) % 2)]
        seen.add(text)
        if len(half.others) < others // 2:
            half.others.append(text)
        if len(half.asking) < others // 2 and target is not None and holds(pairs.smiles[row], target):
            half.asking.append(text)
    return halves
