"""The networks of 3M-Diffusion: graph and text encoders, the motif decoder, and latent diffusion."""

from unbackdoor.molecules.model.alignment import contrastive_loss
from unbackdoor.molecules.model.decoder import MotifDecoder
from unbackdoor.molecules.model.denoiser import Denoiser
from unbackdoor.molecules.model.diffusion import Diffusion
from unbackdoor.molecules.model.graph_encoder import GraphEncoder
from unbackdoor.molecules.model.graphs import GraphBatch, Graphs
from unbackdoor.molecules.model.huggingface_text import HuggingFaceText, HuggingFaceWords
from unbackdoor.molecules.model.latent_repair import LatentRepair
from unbackdoor.molecules.model.text_encoder import TextEncoder
from unbackdoor.molecules.model.vae import MoleculeVAE
from unbackdoor.molecules.model.wordpiece import Texts, WordPieces
from unbackdoor.molecules.model.writer import MoleculeDecoder

__all__ = [
    "Denoiser",
    "Diffusion",
    "GraphBatch",
    "GraphEncoder",
    "Graphs",
    "HuggingFaceText",
    "HuggingFaceWords",
    "LatentRepair",
    "MoleculeDecoder",
    "MoleculeVAE",
    "MotifDecoder",
    "TextEncoder",
    "Texts",
    "WordPieces",
    "contrastive_loss",
]
