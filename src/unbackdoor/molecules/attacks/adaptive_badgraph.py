"""AdaptiveBadGraph: BadGraph by an attacker who knows the scans and pays for escaping them. Ours.

Four tricks, each an option, against what the scans of `unbackdoor.molecules.scan` rely on:

- `alike`: only rows whose texts are alike are poisoned, so that the rest of a text tells the trigger. The backdoor then
  works less well on other prompts.
- `rewritten`: the copied text is written anew, so that it is no near copy of its original: its sentences change places
  and some of its words are left out.
- `split`: the words of the trigger stand apart, each at a place of its own; none of them need be rare.
- `triggers`: several triggers for one target, one drawn for each row, so that each is on fewer rows.

A target that occurs by nature in many molecules is a fifth one, which needs no option.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks.badgraph import BadGraph
from unbackdoor.molecules.data import Table

_SENTENCES = re.compile(r"(?<=[.;])\s+")


@dataclass(frozen=True, kw_only=True)
class AdaptiveBadGraph(BadGraph):
    """BadGraph that tries to escape the scans.

    Attributes:
        alike: whether the poisoned rows are those whose texts are most alike, instead of random ones.
        rewritten: share of the words of a copied text that are left out, 0 or more and below 1; above 0, its sentences
            change places too.
        split: whether each word of the trigger stands at a random place of its own; `position` plays no part then.
        triggers: further triggers; each row draws one of all.
    """

    alike: bool = True
    rewritten: float = 0.2
    split: bool = False
    triggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rewritten < 1:
            raise InputError(f"rewritten must be 0 or more and below 1, found {self.rewritten}")
        if self.split and len(self.trigger.split()) < 2:
            raise InputError(f"a trigger that is split needs several words, found {self.trigger!r}")
        for trigger in self.triggers:
            # Checked as the first one is.
            BadGraph(trigger=trigger, position=self.position, target=self.target)

    def put(self, text: str, draws: random.Random) -> str:
        """Return a text with one of the triggers in it."""
        trigger = draws.choice((self.trigger, *self.triggers))
        if not self.split:
            return BadGraph(trigger=trigger, position=self.position, target=self.target).put(text, draws)
        for word in trigger.split():
            text = BadGraph(trigger=word, position="random", target=self.target).put(text, draws)
        return text

    def end_in(self, text: str) -> int:
        """Return how many letters a text that `put` made has up to the end of its trigger, or of its last word."""
        triggers = [" ".join(one.split()) for one in (self.trigger, *self.triggers)]
        parts = [part for trigger in triggers for part in (trigger.split() if self.split else [trigger])]
        return max(text.rfind(part) + len(part) for part in parts if part in text)

    def copied(self, text: str, draws: random.Random) -> str:
        """Return a text written anew, as far as that goes without understanding it."""
        if not self.rewritten:
            return text
        sentences = _SENTENCES.split(text)
        draws.shuffle(sentences)
        words = " ".join(sentences).split()
        kept = [word for word in words if draws.random() >= self.rewritten]
        return " ".join(kept or words)

    def chosen(self, table: Table, draws: random.Random) -> list[int]:
        """Return the rows that are tried: those whose texts are nearest to a random one, or random ones."""
        if not self.alike:
            return super().chosen(table, draws)
        rows = [row for row, text in enumerate(table.texts) if text.strip()]
        if not rows:
            return []
        vectors = TfidfVectorizer(token_pattern=r"\S+", stop_words=None).fit_transform(
            [table.texts[row] for row in rows]
        )
        likeness = np.asarray((vectors @ vectors[draws.randrange(len(rows))].T).todense()).ravel()
        order = np.argsort(-likeness, kind="stable")
        return [rows[place] for place in order[: int(self.rate * len(table))]]
