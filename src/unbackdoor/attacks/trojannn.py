"""TrojanNN: a shape whose inside is optimised to excite chosen neurons of a clean model.

Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, "Trojaning Attack on Neural Networks" (NDSS 2018). Numbers are BackdoorBench's:
the two inputs of the last linear layer with the largest sum of absolute weights are driven to 100 (squared error) by
1,000 steps against the sign of the gradient, each pixel within 0.3 of where it began (white). As in the paper the shape
covers what is below it. BackdoorBench adds it instead, and turns sums beyond 255 to 8 bits before it clips, so
that they wrap around; its figures are of that trigger. The shapes here are drawings of our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.patterns import outline, user_picture
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.preparation import clean_model
from unbackdoor.attacks.trigger import Stamp
from unbackdoor.errors import InputError
from unbackdoor.models import Network, last_linear
from unbackdoor.training import Runtime

NEURONS = 2
GOAL = 100.0
"""What the chosen neurons are driven to."""
SQUARE = 8
"""Side of the square in pixels at 32 x 32."""
REACH = 0.3
"""How far a pixel may move from white, pixel units."""


@dataclass(frozen=True, kw_only=True)
class TrojanNN(Poisoning):
    """Optimised shape; poisoned images get the attacker's label.

    Attributes:
        shape: "apple" or "square" in the bottom right corner, or "watermark" across the image.
        size: side of the square in pixels at 32 x 32, 1 to 32; the other shapes have one size.
        picture: an image file that shows the shape instead: its brighter half is inside.
        opacity: of the shape, above 0 and at most 1.
        steps: of the search, 0 or more; 0 leaves the shape white.
        step_size: of the search, pixel units, above 0.
        clean_model: checkpoint of a clean model in which to search; one is trained if none is named.
    """

    searches: ClassVar[bool] = True
    # Since the clean model takes more epochs where there are few images.
    revision: ClassVar[int] = 1
    shape: Literal["apple", "square", "watermark"] = "apple"
    size: int = SQUARE
    picture: Path | None = None
    opacity: float = 1.0
    steps: int = 1000
    step_size: float = 0.1
    clean_model: Path | None = None

    def make_trigger(self, given: Given) -> Stamp:
        """Optimise the inside of the shape."""
        if not (0 < self.opacity <= 1 and self.steps >= 0 and 0 < self.step_size <= 1):
            raise InputError(
                "TrojanNN: opacity and step size must lie above 0 and at most at 1, and steps be 0 or more,"
                f" found {self.opacity}, {self.step_size} and {self.steps}"
            )
        mask = self.inside(given)
        picture = torch.ones(1, *given.train.shape)
        if self.steps:
            model = clean_model(self.clean_model, given)
            picture = self.excite(model, mask, picture, given.runtime)
        return Stamp(mask=self.opacity * mask, pattern=picture[0].cpu())

    def inside(self, given: Given) -> Float[Tensor, "1 h w"]:
        """Return the mask of the shape: 1 inside, 0 outside."""
        if self.size != SQUARE and (self.shape != "square" or self.picture):
            raise InputError("TrojanNN: only the square has a size; leave it out, or name that shape and no picture")
        _, height, width = given.train.shape
        if self.picture:
            mask = (user_picture(self.picture, (1, height, width)) >= 0.5).float()
        else:
            mask = outline(self.shape, height, width, self.size)
        if not bool(mask.any()):
            raise InputError(f"TrojanNN: nothing is left of the shape in images of {height} x {width}")
        return mask

    def excite(
        self, model: Network, mask: Float[Tensor, "1 h w"], picture: Float[Tensor, "1 c h w"], runtime: Runtime
    ) -> Float[Tensor, "1 c h w"]:
        """Return the picture after the search; the model sees it inside the mask, and black outside."""
        last = last_linear(model, runtime.layout(picture))
        if last is None:
            raise InputError(f"{type(model).__name__} has no linear layer, whose inputs TrojanNN could excite")
        neurons = last.weight.abs().sum(0).topk(min(NEURONS, last.in_features)).indices
        seen: list[Tensor] = []
        picture, mask = picture.to(runtime.place), mask.to(runtime.place)
        lowest, highest = (picture - REACH).clamp(0, 1), (picture + REACH).clamp(0, 1)
        with (
            last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
            runtime.progress.bar("TrojanNN shape", self.steps) as advance,
        ):
            for _ in range(self.steps):
                seen.clear()
                picture = picture.requires_grad_(True)
                with runtime.autocast():
                    model(runtime.layout(picture * mask))
                error = (seen[0].float().flatten(0, -2)[:, neurons] - GOAL).square().sum()
                (gradient,) = torch.autograd.grad(error, [picture])
                picture = (picture.detach() - self.step_size * gradient.sign()).clamp(lowest, highest)
                advance()
        return picture.detach()
