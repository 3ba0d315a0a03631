"""`Draws`: what is drawn for each image of a batch, whatever company it comes in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unbackdoor.training import Runtime


class Draws(NamedTuple):
    """Draws of one kind of corruption for the images of a batch: the same at each severity.

    Attributes:
        seeds: of each image.
        kind: of the corruption; others draw independently.
        kept: what was drawn, by its name, on the images' device.
    """

    seeds: Int[Tensor, "b"]
    kind: str
    kept: dict[str, Tensor]

    @classmethod
    def of(cls, images: UInt8[Tensor, "b c h w"], kind: str, runtime: Runtime) -> Self:
        """Return draws that depend on the seed, the kind and each image alone."""
        first = runtime.generator("corruption", kind).initial_seed()
        hashes = (hashlib.sha256(image.tobytes()).digest()[:8] for image in images.cpu().contiguous().numpy())
        # As many bits as a seed may have.
        return cls(torch.tensor([(int.from_bytes(one, "big") ^ first) >> 1 for one in hashes]), kind, {})

    def only(self, rows: Int[Tensor, "k"]) -> Self:
        """Return the draws of some of the images."""
        kept = {name: values[rows.to(values.device)] for name, values in self.kept.items()}
        return self._replace(seeds=self.seeds[rows], kept=kept)

    def uniform(self, name: str, *shape: int) -> Float[Tensor, "b ..."]:
        """Return numbers between 0 and 1 for each image, of this shape; the same whenever asked for by this name."""
        return self._drawn(name, lambda generator: torch.rand(shape, generator=generator))

    def normal(self, name: str, *shape: int) -> Float[Tensor, "b ..."]:
        """Return standard normal numbers for each image, of this shape; the same whenever asked for by this name."""
        return self._drawn(name, lambda generator: torch.randn(shape, generator=generator))

    def _drawn(self, name: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        if name not in self.kept:
            salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
            generator = torch.Generator()
            self.kept[name] = torch.stack([draw(generator.manual_seed(seed ^ salt)) for seed in self.seeds.tolist()])
        return self.kept[name]


class Corruption(Protocol):
    """A kind of corruption."""

    def __call__(self, images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
        """Return corrupted images.

        Args:
            images: in [0, 1].
            severity: 1 to 5.
            draws: of these images.

        Returns:
            Images that may leave [0, 1] where light or noise is added.
        """
