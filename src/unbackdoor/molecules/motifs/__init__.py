"""Molecules as trees of motifs: ring systems and single atoms, which the decoder writes one by one."""

from unbackdoor.molecules.motifs.cut import Bond, Cutter, Piece, Tree
from unbackdoor.molecules.motifs.join import join
from unbackdoor.molecules.motifs.motif import Motif
from unbackdoor.molecules.motifs.sequence import MAX_LENGTH, STOP, Node, sequence_of
from unbackdoor.molecules.motifs.tokens import Tokens, encode
from unbackdoor.molecules.motifs.vocabulary import Vocabulary, build_vocabulary

__all__ = [
    "MAX_LENGTH",
    "STOP",
    "Bond",
    "Cutter",
    "Motif",
    "Node",
    "Piece",
    "Tokens",
    "Tree",
    "Vocabulary",
    "build_vocabulary",
    "encode",
    "join",
    "sequence_of",
]
