"""Reading molecules for the decoders: what was cut once is not cut again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.molecules.test_train import TINY
from unbackdoor.molecules import decoders
from unbackdoor.molecules.decoders import read_molecules
from unbackdoor.molecules.hiervae import tree, vocabulary
from unbackdoor.molecules.motifs import Cutter

SMILES = ("CC1CS1", "Cc1ccc(F)cc1", "CCO", "CC1CS1")


@pytest.mark.parametrize("decoder", ["motifs", "HierVAE"])
def test_molecules_that_are_known_are_not_cut_again(decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (decoders._nodes, tree.tree_of, vocabulary._parts):
        one.cache_clear()
    cuts: list[str] = []
    cut, graph = Cutter.cut, tree.Graph.of

    def watched_cut(self: Cutter, smiles: str) -> Any:
        cuts.append(smiles)
        return cut(self, smiles)

    def watched_graph(smiles: str) -> Any:
        cuts.append(smiles)
        return graph(smiles)

    monkeypatch.setattr(Cutter, "cut", watched_cut)
    monkeypatch.setattr(tree.Graph, "of", watched_graph)
    options = replace(TINY, decoder=decoder, common=10)
    first = read_molecules(options, SMILES)
    assert set(cuts) == set(SMILES)
    cuts.clear()
    again = read_molecules(options, SMILES)
    assert not cuts
    assert again.vocabulary == first.vocabulary
    assert again.covered == first.covered == (0, 1, 2, 3)
    read_molecules(options, (*SMILES, "CCN"), first.vocabulary)
    assert set(cuts) == {"CCN"}
