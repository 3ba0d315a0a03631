"""Where computation happens, and the one training loop."""

from unbackdoor.training.budget import affordable
from unbackdoor.training.fits import check_fits, check_shape
from unbackdoor.training.history import Candidate, History, Sweep
from unbackdoor.training.hook import Batch, Hook
from unbackdoor.training.inference import logits_of, losses_of
from unbackdoor.training.loop import fit
from unbackdoor.training.new import UserNetwork, architecture_of, network_options, new_network
from unbackdoor.training.recipe import Recipe, enough_epochs
from unbackdoor.training.resume import stage
from unbackdoor.training.runtime import Progress, Runtime, Silent

__all__ = [
    "Batch",
    "Candidate",
    "History",
    "Hook",
    "Progress",
    "Recipe",
    "Runtime",
    "Silent",
    "Sweep",
    "UserNetwork",
    "affordable",
    "architecture_of",
    "check_fits",
    "check_shape",
    "enough_epochs",
    "fit",
    "logits_of",
    "losses_of",
    "network_options",
    "new_network",
    "stage",
]
