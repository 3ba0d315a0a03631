"""GIN, the graph encoder of 3M-Diffusion (Hu et al., "Strategies for Pre-training Graph Neural Networks", ICLR 2020).

Published: the second table of atoms holds chirality, and a second table of bonds their direction. Neither can come out
of the decoder, and molecules here have no stereochemistry; the second table of atoms holds the charge instead, without
which an acid and its anion were one. The published encoder starts from weights that cannot be had any more; ours starts
from random ones.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.molecules.model.blocks import in_blocks
from unbackdoor.molecules.model.graphs import CHARGES, ELEMENTS, KINDS, GraphBatch


class GraphEncoder(nn.Module):
    """Molecules to vectors: GIN layers, layer normalisation of the atoms, a linear map, and the mean over the atoms.

    Args:
        layers: 1 or more.
        width: of the atoms' vectors.
        projection: of the molecules' vectors.
    """

    def __init__(self, layers: int, width: int, projection: int) -> None:
        super().__init__()
        self.element = nn.Embedding(ELEMENTS, width)
        self.charge = nn.Embedding(CHARGES, width)
        self.layers = nn.ModuleList(GINLayer(width, last=number == layers - 1) for number in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, projection)

    def forward(self, graphs: GraphBatch) -> Float[Tensor, "b p"]:
        """Return a vector a molecule, not normalised."""
        atoms = self.element(graphs.element) + self.charge(graphs.charge)
        # How many bonds of each kind an atom has; column 0 is the bond to itself.
        bonds = atoms.new_zeros(len(atoms), len(KINDS) + 1)
        bonds.index_put_((graphs.target, graphs.kind), bonds.new_ones(()), accumulate=True)
        bonds[:, 0] = 1
        for layer in self.layers:
            atoms = layer(atoms, bonds, graphs)
        projected = in_blocks(self.project, self.norm(atoms)).float()
        sums = projected.new_zeros(graphs.molecules, projected.shape[1]).index_add_(0, graphs.owner, projected)
        means: Tensor = sums / torch.bincount(graphs.owner, minlength=graphs.molecules).unsqueeze(1)
        return means


class GINLayer(nn.Module):
    """Sum over an atom, its neighbours and its bonds, a perceptron, batch normalisation, and ReLU but for the last."""

    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        self.bond = nn.Linear(len(KINDS) + 1, width, bias=False)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.norm = nn.BatchNorm1d(width)
        self.last = last

    def forward(
        self, atoms: Float[Tensor, "atoms w"], bonds: Float[Tensor, "atoms k"], graphs: GraphBatch
    ) -> Float[Tensor, "atoms w"]:
        """Return new vectors of the atoms."""
        message = atoms.float().index_add(0, graphs.target, atoms.float()[graphs.source]) + self.bond(bonds)
        new: Tensor = self.norm(in_blocks(self.perceptron, message).float())
        return new if self.last else new.relu()
