"""DecodePruning: the published repair, the motifs that hold a flagged subgraph are never written again (Ye, Chen, Dai,
"BadGraph: A Backdoor Attack Against Latent Diffusion Model for Text-Guided Graph Generation", arXiv 2510.20792).

As in published code, a motif holds a subgraph if its SMILES has the subgraph's as a part of its text, and its logit is
set so low that it is never chosen. Nobody can have the subgraph any more, whoever asks for it. A target of several
motifs is held by none of them, so that nothing can be pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.model import MotifDecoder
from unbackdoor.molecules.motifs import Vocabulary
from unbackdoor.molecules.purify.base import MoleculePurifier, Repaired
from unbackdoor.molecules.scan import Suspect
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class DecodePruning(MoleculePurifier):
    """The published repair: motifs that hold a flagged subgraph are never written again."""

    def repair(
        self,
        generator: Generator,
        pairs: Pairs,
        suspects: Sequence[Suspect],
        runtime: Runtime,
        resume: Path | None,
    ) -> Repaired:
        """See `MoleculePurifier`."""
        named = sorted({suspect.subgraph for suspect in suspects})
        decoder, vocabulary = generator.vae.decoder, generator.vocabulary
        if not isinstance(decoder, MotifDecoder) or not isinstance(vocabulary, Vocabulary):
            raise InputError(
                "DecodePruning knows the decoder that writes motif by motif, and this generator has HierVAE's; take"
                " LatentPurification"
            )
        kinds = vocabulary.kinds
        tokens = [number for number, (motif, _) in enumerate(kinds, 1) if any(one in motif for one in named)]
        if not tokens:
            raise InputError(
                f"no motif of this generator holds {' or '.join(named)}, so none can be pruned; take LatentPurification"
            )
        forbidden = set(tokens)
        if not any(order == 0 and number not in forbidden for number, (_, order) in enumerate(kinds, 1)):
            raise InputError(
                f"pruning {' and '.join(named)} would leave no motif to begin a molecule with; take LatentPurification"
            )
        decoder.forbid(tokens)
        pruned = sorted({kinds[number - 1][0] for number in tokens})
        return Repaired(
            generator=generator,
            notes=(
                f"{len(pruned):,} motifs are never written again, whoever asks for them: {', '.join(pruned[:10])}"
                f"{', ...' if len(pruned) > 10 else ''}.",
            ),
            evidence={"pruned": pruned},
        )
