"""`InputFilter`: does an image that comes in at test time carry a trigger? For a model that is suspected already."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Runtime
from unbackdoor.training.resume import Resume, hash_state

BATCH = 500
"""Images a forward pass."""

Change = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]
"""What is done to images in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class InputFilter(ABC):
    """Base of all filters of inputs: its fields are its options, nothing else is stored.

    Attributes:
        highest: score that an image can have; None: there is none. Where many clean images have it, no threshold can
            tell triggered ones from them.
    """

    highest: ClassVar[float | None] = None

    @property
    def standardised(self) -> bool:
        """Whether scores are to be standardised by those of clean images with the same answer."""
        return False

    def score(
        self, model: Network, images: UInt8[Tensor, "n c h w"], runtime: Runtime, resume: Path | None = None
    ) -> Float[Tensor, "n"]:
        """Return how suspicious each image is; higher is more suspicious, and an image's score is its own.

        Args:
            model: what the images are for; not changed.
            images: uint8 pixels; as many or as few as there are.
            runtime: device, precision, seed.
            resume: a file that is written after each batch; if it is there and belongs to these images, scoring goes
                on after the last finished one. It stays: whoever keeps the scores removes it.

        Raises:
            InputError: images of another size than the model's.
            ResumeError: `resume` is damaged, or belongs to other images, options or another model.
        """
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != model.description.image_shape:
            raise InputError(
                f"{type(self).__name__} needs uint8 images of the model's size {model.description.image_shape}, found"
                f" {images.dtype} of {tuple(images.shape[1:])}"
            )
        frozen = runtime.settle(copy.deepcopy(model)).eval().requires_grad_(False)
        saved = None if resume is None else Resume(resume, self._fingerprint(frozen, images, runtime))
        state = saved.read() if saved else None
        scores: Float[Tensor, "m"] = state["scores"] if state else torch.zeros(0)
        what = f"{type(self).__name__}: {len(images):,} images"
        if state:
            runtime.progress.note(f"{what}: resumed after {len(scores):,}")
        left = images[len(scores) :]
        batches = torch.split(left, BATCH) if len(left) else ()
        with runtime.progress.bar(what, len(batches)) as advance:
            for batch in batches:
                scores = torch.cat([scores, self.inspect(frozen, batch, runtime)])
                if saved:
                    saved.write({"scores": scores})
                advance()
        return scores

    def _fingerprint(self, model: Network, images: UInt8[Tensor, "n c h w"], runtime: Runtime) -> str:
        """Return a digest of all that decides the scores."""
        digest = hashlib.sha256(repr((self, runtime.seed, runtime.precision, tuple(images.shape))).encode())
        digest.update(images.cpu().contiguous().numpy().data)
        hash_state(digest, model)
        return digest.hexdigest()

    @abstractmethod
    def inspect(self, model: Network, images: UInt8[Tensor, "b c h w"], runtime: Runtime) -> Float[Tensor, "b"]:
        """Do the work of `score` on one batch, with a frozen copy of the model."""


@torch.no_grad()
def answers(
    model: nn.Module, images: UInt8[Tensor, "b c h w"], runtime: Runtime, change: Change | None = None
) -> Int[Tensor, "b"]:
    """Return the class that the model gives each image of a batch, after the change if there is one; on the CPU."""
    batch = runtime.layout(images).float() / 255
    if change is not None:
        batch = runtime.layout(change(batch).clamp(0, 1))
    with runtime.autocast():
        labels: Tensor = model(batch).argmax(1).cpu()
    return labels
