"""Which network do these weights belong to? Told by the names and shapes of a state dict alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from unbackdoor.errors import CheckpointError
from unbackdoor.limits import MAX_CHANNELS, MAX_CLASSES
from unbackdoor.models.build import MAX_WIDTH, NETWORKS

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Guess:
    """A network that fits a state dict.

    Attributes:
        architecture: its registered name.
        width: channels of its first layer.
        channels: of an image.
        classes: number of logits.
    """

    architecture: str
    width: int
    channels: int
    classes: int


# The first convolution (width, channels, 3, 3) and the last linear layer (classes, features) of our networks.
ENDS = {
    "PreActResNet18": ("conv1.weight", "linear.weight"),
    "ResNet18": ("conv1.weight", "linear.weight"),
    "VGG19BN": ("features.0.weight", "classifier.6.weight"),
    "WRN16x1": ("conv1.weight", "fc.weight"),
}

# Names that set torchvision's ResNets apart from those of the same paper for small images.
_TORCHVISION_RESNET = frozenset({"conv1.weight", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.weight"})


def shapes_of(body: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a module's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in body.state_dict().items()}


def measure(architecture: str, shapes: Shapes) -> Guess | None:
    """Return width, channels and classes as one of our networks would have them, or None.

    The first and the last layer are looked at, no others; whether the rest fits is for the caller to see.
    """
    if architecture not in ENDS:
        return None
    first, last = (shapes.get(name, ()) for name in ENDS[architecture])
    if len(first) != 4 or len(last) != 2:
        return None
    width, channels, classes = first[0], first[1], last[0]
    if not (1 <= width <= MAX_WIDTH and 1 <= channels <= MAX_CHANNELS and 1 <= classes <= MAX_CLASSES):
        return None
    return Guess(architecture, width, channels, classes)


def guess(shapes: Shapes) -> Guess:
    """Return the one network whose state dict has exactly these names and shapes.

    Args:
        shapes: name to shape, without a wrapper's prefixes.

    Raises:
        CheckpointError: no network fits, or more than one; the architecture must then be named.
    """
    fitting = []
    for architecture in ENDS:
        candidate = measure(architecture, shapes)
        if candidate is not None and _shapes_if_built(candidate) == shapes:
            fitting.append(candidate)
    if not fitting and shapes.keys() >= _TORCHVISION_RESNET:
        raise CheckpointError(
            "it has the layout of torchvision's ResNet (as BackdoorBench's resnet18), which is none of the networks"
            " known by name; name a function of yours that builds it with --arch module:function (the argument `arch`)"
        )
    if len(fitting) != 1:
        found = " and ".join(one.architecture for one in fitting) or "none"
        raise CheckpointError(
            f"the architecture cannot be told from the {len(shapes)} tensors' names and shapes (of"
            f" {', '.join(ENDS)}, {found} fits); name it with --arch (the argument `arch`): one of these, or"
            " module:function for code of your own"
        )
    return fitting[0]


def _shapes_if_built(candidate: Guess) -> dict[str, tuple[int, ...]]:
    """Return what the candidate's state dict would be, without memory for it."""
    network = NETWORKS[candidate.architecture]
    with torch.device("meta"):
        return shapes_of(network(candidate.channels, candidate.classes, candidate.width))
