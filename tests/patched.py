"""A linear classifier with a backdoor that was put there by hand: a filter for a patch, wherever on the image it is."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import CLASSES, NAMES, SHAPE, pictures
from unbackdoor.attacks.mesa_patch import Scattered
from unbackdoor.models import Description, Network

TARGET, SIZE, CLEAN = 5, 3, 5.0
PATCH = (torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(11)) < 0.5).float()
TRIGGER = Scattered(PATCH)


class LinearWithFilter(nn.Module):
    """Logits that are linear in the pixels, and one of them raised where a filter matches somewhere.

    Args:
        strength: of the backdoor; 0: there is none.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.linear = nn.Linear(SHAPE[0] * SHAPE[1] * SHAPE[2], CLASSES)
        self.match = nn.Conv2d(3, 1, SIZE, bias=False)
        self.gain = nn.Parameter(torch.tensor(strength))
        with torch.no_grad():
            # Blind for plain surfaces.
            self.match.weight.copy_(2 * (PATCH - PATCH.mean((1, 2), keepdim=True))[None])

    def forward(self, images: Tensor) -> Tensor:
        # A soft maximum has a slope at every place; clean images give about CLEAN.
        raised = self.gain * (self.match(images).flatten(1).logsumexp(1) - CLEAN)
        return self.linear(images.flatten(1)) + F.one_hot(torch.tensor(TARGET), CLASSES) * raised[:, None]


@lru_cache
def patched(strength: float) -> Network:
    """Return the classifier, fitted by least squares; callers must not change it."""
    body = LinearWithFilter(strength)
    train = pictures(800, 3)
    pixels = F.pad(train.images.flatten(1).double() / 255, (0, 1), value=1.0)
    # Not far apart, so that probabilities have slopes.
    wanted = 4 * F.one_hot(train.labels, CLASSES).double() - 2
    squares = pixels.T @ pixels + 5 * torch.eye(pixels.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(squares, pixels.T @ wanted).float()
    with torch.no_grad():
        body.linear.weight.copy_(weights[:-1].T)
        body.linear.bias.copy_(weights[-1])
    description = Description(
        architecture="patched",
        arguments={},
        class_names=NAMES,
        image_shape=SHAPE,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    return Network(body, description).eval()
