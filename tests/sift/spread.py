"""Networks that read pixels as features, and images whose features are planted: known answers without training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.models import Description, Network
from unbackdoor.training import Runtime

CLASSES = 5
SHAPE = (3, 4, 4)
FEATURES = 48
NAMES = tuple("abcde")
TARGET = 2


def runtime(seed: int = 0) -> Runtime:
    return Runtime(device="cpu", precision="fp32", threads=1, seed=seed)


def reader(weight: Tensor | None = None) -> Network:
    """Return a network whose features are the pixels, from -1 to 1, and whose last feature map is the image."""
    linear = nn.Linear(FEATURES, CLASSES, bias=False)
    with torch.no_grad():
        linear.weight.copy_(centres().T.mul(4).T if weight is None else weight)
    body = nn.Sequential(nn.Identity(), nn.Flatten(), linear)
    description = Description(
        architecture="reader",
        arguments={},
        class_names=NAMES,
        image_shape=SHAPE,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    return Network(body, description).eval()


def centres() -> Tensor:
    """Return the mean features of the classes."""
    return 0.3 * torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(11)).sign()


def away(seed: int = 12) -> Tensor:
    """Return a direction of length 1."""
    direction = torch.randn(FEATURES, generator=torch.Generator().manual_seed(seed))
    return direction / direction.norm()


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """Rows, which of them are planted, and the same without anything planted.

    Attributes:
        rows: with the planted ones.
        planted: which they are.
        plain: the same rows before anything was planted.
    """

    rows: ImageSet
    planted: Tensor
    plain: ImageSet

    @property
    def data(self) -> DefenderData:
        return DefenderData(untrusted=self.rows)

    @property
    def without(self) -> DefenderData:
        return DefenderData(untrusted=self.plain)


def images_of(features: Tensor, labels: Tensor) -> ImageSet:
    """Return images whose pixels are the features, -1 to 1."""
    pixels = ((features.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return ImageSet(images=pixels.view(-1, *SHAPE), labels=labels, class_names=NAMES, name="spread")


def spread(shift: Tensor, share: float = 0.15, count: int = 600, scale: Tensor | float = 0.08, seed: int = 0) -> Spread:
    """Return rows about the centres of their classes; a share of the rows of class `TARGET` is shifted."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    features = centres()[labels] + scale * torch.randn(count, FEATURES, generator=generator)
    members = (labels == TARGET).nonzero().squeeze(1)
    planted = torch.zeros(count, dtype=torch.bool)
    planted[members[: round(share * len(members))]] = True
    return Spread(
        rows=images_of(features + planted[:, None] * shift, labels), planted=planted, plain=images_of(features, labels)
    )


def auroc(scores: Tensor, planted: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(planted.numpy(), scores.numpy()))
