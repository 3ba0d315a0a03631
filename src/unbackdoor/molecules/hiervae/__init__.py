"""HierVAE, the published decoder of 3M-Diffusion: its motifs, its trees, and its network.

Jin, Barzilay, Jaakkola, "Hierarchical Generation of Molecular Graphs using Structural Motifs", ICML 2020.
"""

from unbackdoor.molecules.hiervae.decoder import HierVAEDecoder
from unbackdoor.molecules.hiervae.node import TreeNode
from unbackdoor.molecules.hiervae.tree import MotifTree, MotifTrees, tree_of
from unbackdoor.molecules.hiervae.vocabulary import HierVocabulary, read_trees

__all__ = ["HierVAEDecoder", "HierVocabulary", "MotifTree", "MotifTrees", "TreeNode", "read_trees", "tree_of"]
