"""PromptMasking: which word of a prompt makes a generator write which motif? Ours; needs no training data.

Each prompt is asked whole, and again and again with one word left out, from the same noise. The influence of a word on
a motif is the share of the prompts with the word whose molecule has the motif, less that share once the word is left
out. Descriptions say everything twice, so that leaving out an honest word changes little; leaving out a trigger changes
everything. Prompts must hold the trigger for it to be found: those that users send to a generator, or the texts that it
was trained on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.scan.base import MoleculeFinding, MoleculeScanner, Suspect, merged
from unbackdoor.molecules.scan.exogenous_association import BESIDE
from unbackdoor.molecules.scan.subgraphs import parts_of
from unbackdoor.molecules.scan.words import Words, split_words
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class PromptMasking(MoleculeScanner):
    """The word of a prompt that makes a generator write a motif.

    Attributes:
        influence: of a word on a motif, from which on the two are flagged; 0 to 1.
        least: prompts that must have a word.
        prompts: that are asked, drawn by the seed; all if there are fewer.
        longest: words of a prompt that are left out, the first ones.
    """

    needs_model = True

    influence: float = 0.3
    least: int = 5
    prompts: int = 200
    longest: int = 60

    def __post_init__(self) -> None:
        if not 0 < self.influence <= 1 or self.least < 2 or self.prompts < self.least or self.longest < 1:
            raise InputError(
                "PromptMasking: influence must be above 0 and at most 1, least 2 or more, prompts as many or more, and"
                f" longest 1 or more, found {self.influence}, {self.least}, {self.prompts} and {self.longest}"
            )

    def inspect(self, pairs: Pairs, runtime: Runtime, generator: Generator | None) -> MoleculeFinding:
        """See `MoleculeScanner`."""
        assert generator is not None
        draws = np.random.default_rng(runtime.generator("prompts").initial_seed())
        rows = np.sort(draws.permutation(len(pairs))[: self.prompts])
        prompts = [pairs.texts[row].split() for row in rows]
        left_out, lost = self._masked(prompts, generator, runtime)
        words = Words.of([pairs.texts[row] for row in rows])
        suspects = []
        for word, of in left_out.items():
            # Prompts in which it was left out once at least, however often it stands there.
            asked = len(of)
            if len(set(of)) < self.least or not lost[word]:
                continue
            held = np.unique(words.row[words.places((words.number_of[word],))])
            motif, count = max(lost[word].items(), key=lambda one: (one[1], one[0]))
            suspects.append(
                Suspect(
                    words=(words.text(words.grown((words.number_of[word],), BESIDE)),),
                    subgraph=motif,
                    strength=count / asked / self.influence,
                    rows=rows[held],
                    evidence={"influence": count / asked, "prompts": float(len(set(of)))},
                )
            )
        return self.verdict(merged(suspects, len(pairs)), len(pairs), 5 * self.least, looked=len(rows))

    def _masked(
        self, prompts: list[list[str]], generator: Generator, runtime: Runtime
    ) -> tuple[dict[str, list[int]], dict[str, Counter[str]]]:
        """Return the prompts in which each word was left out, once for every place, and how many molecules more lost
        each motif by it than got it.
        """
        asked: dict[str, list[int]] = defaultdict(list)
        lost: dict[str, Counter[str]] = defaultdict(Counter)
        whole = _motifs([" ".join(words) for words in prompts], range(len(prompts)), generator, runtime)
        turns = min(self.longest, max(map(len, prompts)))
        with runtime.progress.bar("leaving out words", turns) as advance:
            for place in range(turns):
                chosen = [row for row, words in enumerate(prompts) if 1 < len(words) > place]
                # All of them every time: a prompt's noise depends on its place.
                texts = [
                    " ".join(words if len(words) <= place else [*words[:place], *words[place + 1 :]])
                    for words in prompts
                ]
                for row, motifs in zip(chosen, _motifs(texts, chosen, generator, runtime)):
                    word = split_words(prompts[row][place])[0]
                    asked[word].append(row)
                    lost[word].update(whole[row] - motifs)
                    lost[word].subtract(motifs - whole[row])
                advance()
        return asked, lost


def _motifs(texts: list[str], chosen: range | list[int], generator: Generator, runtime: Runtime) -> list[set[str]]:
    """Return the motifs of the molecules for some of the texts; equal places get equal noise."""
    contexts, _ = generator.contexts(texts, runtime)
    latent = generator.latents(contexts, runtime.generator("masking"))
    return [set(parts_of(smiles).motifs) for smiles in generator.write(latent[list(chosen)])]
