"""Inspections: what a model looks like inside, for those who study backdoors. They may know the attack."""

from unbackdoor.inspect.activation import Activation
from unbackdoor.inspect.base import Figure, Insight, Inspection, KnownAttack, Material, Matrix, Pictures
from unbackdoor.inspect.confidence import Confidence
from unbackdoor.inspect.confusion import Confusion
from unbackdoor.inspect.embedding import Embedding
from unbackdoor.inspect.frequency import Frequency
from unbackdoor.inspect.grad_cam import GradCAM
from unbackdoor.inspect.gradients import Gradients
from unbackdoor.inspect.lipschitz import Lipschitz
from unbackdoor.inspect.weights import Weights
from unbackdoor.registry import Registry

INSPECTIONS: Registry[Inspection] = Registry(
    "inspection", Confidence, Confusion, Embedding, GradCAM, Activation, Lipschitz, Frequency, Gradients, Weights
)
"""All inspections, by name, in the order in which a page shows them; the command line takes small letters too."""

__all__ = [
    "INSPECTIONS",
    "Activation",
    "Confidence",
    "Confusion",
    "Embedding",
    "Figure",
    "Frequency",
    "GradCAM",
    "Gradients",
    "Insight",
    "Inspection",
    "KnownAttack",
    "Lipschitz",
    "Material",
    "Matrix",
    "Pictures",
    "Weights",
]
