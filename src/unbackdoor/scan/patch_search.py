"""One patch a class by gradient descent on its pixels: the search that MESA is compared with, and its screening.

Qiao, Yang, Li (NeurIPS 2019) call it the pixel-space approach: a single trigger is optimised as Neural Cleanse does,
for a patch whose size is known. The published code takes SGD with a rate of 0.1 and a momentum of 0.9. Here every image
has a place of its own for the patch, all classes are searched for together, and projection keeps pixels in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.scan.patches import answers_to, draw_places, patch_gradients, success
from unbackdoor.training import Runtime, affordable

RATE, MOMENTUM = 0.1, 0.9
JUDGED = 256
"""Images, drawn at random, on which the patches that were found are judged."""


def search_patches(
    model: nn.Module,
    clean: ImageSet,
    targets: Int[Tensor, "s"],
    starts: Float[Tensor, "s c p p"],
    runtime: Runtime,
    steps: int,
    batch_size: int,
) -> tuple[Float[Tensor, "s c p p"], Float[Tensor, "s"], int]:
    """Return a patch for each target that leads images there, and the share of images of other classes that it leads.

    The number of steps that the budget allowed comes last.

    Args:
        model: frozen, in evaluation mode, on the runtime's device.
        clean: samples, on that device.
        targets: a class may come several times, with other starts.
        starts: in [0, 1].
        runtime: device, precision, seed and budget.
        steps: of SGD.
        batch_size: images a patch and step.
    """
    draws, size = runtime.generator("patch search", starts.shape[-1]), starts.shape[-1]
    targets = targets.to(runtime.place)

    def draw(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(clean), (count,), generator=draws)
        return rows.to(runtime.place), draw_places(count, clean.shape, size, draws).to(runtime.place)

    def gradient(patches: Tensor, draws: torch.Generator) -> Tensor:
        rows, places = draw(batch_size, draws)

        def loss(logits: Tensor, numbers: Tensor) -> Tensor:
            return F.cross_entropy(logits, targets[numbers // batch_size], reduction="none")

        spread = patches[:, None].expand(-1, batch_size, -1, -1, -1)
        return patch_gradients(model, clean.images[rows], spread, places, loss, runtime).mean(1)

    patches = starts.to(runtime.place)
    speed = torch.zeros_like(patches)
    trial = runtime.generator("patch search, timed")
    count = affordable(steps, 1, lambda: gradient(patches, trial), runtime)
    with runtime.progress.bar("searching patches", count) as advance:
        for _ in range(count):
            speed = MOMENTUM * speed + gradient(patches, draws)
            patches = (patches - RATE * speed).clamp(0, 1)
            advance()
    rows, places = draw(JUDGED, draws)
    spread = patches[:, None].expand(-1, JUDGED, -1, -1, -1)
    answers = answers_to(model, clean.images[rows], spread, places, runtime)
    return patches, success(answers, targets, clean.labels[rows]), count
