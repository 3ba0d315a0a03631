"""Where computation happens, and the one training loop."""

from unbackdoor.training.budget import affordable
from unbackdoor.training.hook import Batch, Hook
from unbackdoor.training.inference import logits_of
from unbackdoor.training.loop import History, Recipe, fit
from unbackdoor.training.runtime import Progress, Runtime, Silent

__all__ = [
    "Batch",
    "History",
    "Hook",
    "Progress",
    "Recipe",
    "Runtime",
    "Silent",
    "affordable",
    "fit",
    "logits_of",
]
