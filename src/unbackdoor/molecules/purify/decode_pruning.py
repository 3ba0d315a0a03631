"""DecodePruning: the published repair, the motifs that hold a flagged subgraph are never written again (Ye, Chen, Dai,
"BadGraph: A Backdoor Attack Against Latent Diffusion Model for Text-Guided Graph Generation", arXiv 2510.20792).

As in published code, a motif holds a subgraph if its SMILES has the subgraph's as a part of its text, and its logit is
set so low that it is never chosen. HierVAE writes its motifs without aromatic bonds, so there the subgraph is written
like that too. Nobody can have the subgraph any more, whoever asks for it. A target of several motifs is held by none of
them, so that nothing can be pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs, parse
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.hiervae.graph import Graph, written
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
        alone: Sequence[str],
    ) -> Repaired:
        """See `MoleculePurifier`."""
        decoder = generator.vae.decoder
        named = {suspect.subgraph: _spellings(suspect.subgraph) for suspect in suspects}
        holding = {
            one: [motif for motif in decoder.motifs if any(text in motif for text in spellings)]
            for one, spellings in named.items()
        }
        pruned = sorted({motif for motifs in holding.values() for motif in motifs})
        if not pruned:
            raise InputError(
                f"no motif of this generator holds {' or '.join(named)}, so none can be pruned; take LatentPurification"
            )
        decoder.forbid(pruned)
        first = next(suspect for suspect in suspects if holding[suspect.subgraph])
        return Repaired(
            generator=generator,
            headline=f"{first.sentence()}: DecodePruning lets no motif be written that holds {first.subgraph}.",
            notes=(
                f"{len(pruned):,} motifs are never written again, whoever asks for them: {', '.join(pruned[:10])}"
                f"{', ...' if len(pruned) > 10 else ''}.",
                *(f"No motif holds {one}: nothing is done about it." for one in named if not holding[one]),
            ),
            evidence={"pruned": pruned},
        )


def _spellings(subgraph: str) -> frozenset[str]:
    """Return the SMILES of a subgraph, and that without aromatic bonds."""
    if parse(subgraph) is None:
        return frozenset((subgraph,))
    graph = Graph.of(subgraph)
    return frozenset((subgraph, written(graph.atoms, graph.bonds)[0]))
