"""`Network`: from images in [0, 1] to logits, with the normalisation as its first layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.models.edits import Edit


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, per channel.

    Args:
        mean: one value per channel, in pixel units [0, 1].
        std: one positive value per channel, in pixel units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or not all(value > 0 for value in std):
            raise InputError(f"normalisation needs as many positive std as mean values, found {mean} and {std}")
        # Not persistent: a body's state dict stays exactly what other programs read and write.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the normalised images."""
        return (images - self.mean) / self.std


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is needed, beside the weights, to use a model.

    Attributes:
        architecture: a registered network's name, or `module:function` (never taken from a file).
        arguments: the network's own options, such as `{"width": 16}`; JSON values.
        class_names: one per output. Text from outside.
        image_shape: channels, height, width that the model was trained on.
        mean: per channel, pixel units [0, 1].
        std: per channel, pixel units.
        edits: made to the architecture after it was built, in this order; see `insert_plug`.
    """

    architecture: str
    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    edits: tuple[Edit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; `edits` only if there are any, for those who do not know of them."""
        content = asdict(self)
        if not self.edits:
            del content["edits"]
        return content


class Network(nn.Module):
    """A classifier from images in [0, 1] to logits.

    Attributes:
        normalize: the first layer.
        body: the architecture proper; its state dict is what a checkpoint holds.
        description: how to build it again.
    """

    def __init__(self, body: nn.Module, description: Description) -> None:
        super().__init__()
        self.normalize = Normalize(description.mean, description.std)
        self.body = body
        self.description = description

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return logits of images in [0, 1]."""
        logits: Tensor = self.body(self.normalize(images))
        return logits

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.description.class_names)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the modules whose composition is the body, with their names, in order; none if it does not tell them.

        A body tells them by a method of the same name; those of an `nn.Sequential` are its members.
        """
        if isinstance(self.body, nn.Sequential):
            return list(self.body.named_children())
        stages: list[tuple[str, nn.Module]] = getattr(self.body, "stages", list)()
        return stages

    def last_block(self) -> str:
        """Return the last stage that has a convolution: in a residual network, its last block.

        Raises:
            InputError: the body tells no stages, or fewer than two of them have a convolution.
        """
        blocks = [name for name, stage in self.stages() if any(isinstance(one, nn.Conv2d) for one in stage.modules())]
        if len(blocks) < 2:
            raise InputError(
                f"{self.description.architecture} cannot be cut into a stem and a head: it tells {len(blocks)} stages"
                " with convolutions, and two are needed; give its class a method `stages`, or choose another network"
            )
        return blocks[-1]

    def split(self, at: str) -> tuple[nn.Sequential, nn.Sequential]:
        """Cut the network before the stage named `at`.

        Args:
            at: a stage of the body, such as "layer4.1" (`stages` lists them).

        Returns:
            stem (images in [0, 1] to features, normalisation included) and head (features to logits). They
            share the network's parameters.

        Raises:
            InputError: the body has no such stage.
        """
        stages = self.stages()
        names = [name for name, _ in stages]
        if at not in names:
            raise InputError(
                f"{self.description.architecture} has no stage {at!r}; it has: {', '.join(names) or 'none'}"
            )
        cut = names.index(at)
        modules = [module for _, module in stages]
        return nn.Sequential(self.normalize, *modules[:cut]), nn.Sequential(*modules[cut:])
