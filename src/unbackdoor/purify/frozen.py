"""Training a plug in a network that is frozen otherwise: what comes before it is computed once."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.training import Batch, Hook, Recipe, Runtime
from unbackdoor.training.inference import BATCH

CACHE_BYTES = 2**30
"""Features of the clean images are kept if they take no more than this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frozen:
    """The part of the network before the plug, which never changes.

    Attributes:
        point: name of the module that became plug and module.
        cut: the stage that holds it, or None if the network cannot be cut.
        features: what comes into that stage, for all clean images, or None where that is not kept.
    """

    point: str
    cut: str | None
    features: Float[Tensor, "n ..."] | None

    @classmethod
    def of(cls, model: Network, point: str, clean: ImageSet, runtime: Runtime) -> Frozen:
        """Run all clean images through the layers before the stage with the plug, once."""
        around = [name for name, _ in model.stages() if f"{point}.".startswith(f"{name}.")]
        if not around:
            return cls(point=point, cut=None, features=None)
        cut = max(around, key=len)
        stem, _ = model.split(cut)
        parts: list[Tensor] = []
        for start in range(0, len(clean), BATCH):
            images = runtime.layout(clean.images[start : start + BATCH]).float() / 255
            with torch.no_grad(), runtime.autocast():
                parts.append(stem(images))
            if parts[0][0].nbytes * len(clean) > CACHE_BYTES:
                return cls(point=point, cut=cut, features=None)
        return cls(point=point, cut=cut, features=torch.cat(parts))


class PlugHook(Hook):
    """What both stages share: the network in two parts, cut before the plug."""

    def __init__(self, options: object, frozen: Frozen) -> None:
        self.options = options
        self.frozen = frozen

    def identity(self) -> object:
        """Return the stage, the options and the place."""
        return type(self).__name__, self.options, self.frozen.point

    def for_timing(self) -> Self:
        """Return a copy that shares the kept features, which may be a gigabyte."""
        return copy.copy(self)

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Find the plug and the two parts in this model, which may be a copy."""
        super().begin(model, recipe, runtime)
        assert isinstance(model, Network)
        self.plug = model.body.get_submodule(f"{self.frozen.point}.plug")
        # Never compiled: the run is shorter than compilation.
        self.stem: nn.Module = nn.Identity()
        self.head: nn.Module = model
        if self.frozen.cut is not None:
            self.stem, self.head = model.split(self.frozen.cut)

    def clean_features(self, batch: Batch) -> Float[Tensor, "b ..."]:
        """Return what comes into the part with the plug."""
        if self.frozen.features is None:
            with torch.no_grad():
                features: Tensor = self.stem(batch.images)
            return features
        features = self.frozen.features[batch.rows]
        return self.runtime.layout(features) if features.ndim == 4 else features
