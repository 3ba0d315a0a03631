"""SSBA: a secret that a network hides in every image, in a way of the image's own.

Li, Li, Wu, Li, He, Lyu, "Invisible Backdoor Attack with Sample-Specific Triggers" (ICCV 2021). An encoder adds a
residual from which a decoder can read 100 secret bits (after StegaStamp: Tancik, Mildenhall, Ng, CVPR 2020); the
trigger is the encoder with one fixed secret. Published results use images made beforehand, which are a download; here
the pair is trained on the clean training images at hand: cross-entropy of the bits plus the squared residual, which is
bounded. The published loss also has a perceptual term, from a pretrained network that we do without, and 20 epochs.
Images of fewer than 10 pixels a side do not hold all of the bits: of 8 x 8 pixels, 64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.generator import Generator, LearnedTrigger, check_width, seeded
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.preparation import prepare, unhurried
from unbackdoor.attacks.trigger import one_number
from unbackdoor.errors import InputError
from unbackdoor.training import Batch, Hook, Recipe, logits_of

BITS = 100
SIDE = 10
"""The bits are shown to the encoder as a square of so many fields along each side, enlarged to the image."""


class HiddenSecret(LearnedTrigger):
    """Hide fixed bits in each image: x' = clip(x + bound tanh(e(x, bits)), 0, 1).

    Args:
        encoder: network of image channels plus one in, image channels out.
        secret: the bits, each -1 or 1; shape (100,).
        bound: largest change of a pixel; shape ().
    """

    secret: Tensor
    bound: Tensor

    def __init__(self, encoder: Generator, secret: Float[Tensor, "100"], bound: Float[Tensor, ""]) -> None:
        super().__init__()
        self.encoder = encoder
        if secret.shape != (BITS,):
            raise InputError(f"a secret has {BITS} bits, found {tuple(secret.shape)}")
        self.register_buffer("secret", secret)
        self.register_buffer("bound", one_number(bound, "the bound", 0, 1))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> HiddenSecret:
        """Return the trigger with these weights and this secret."""
        trigger: HiddenSecret = cls(cls.generator_in(state, "encoder"), state["secret"], state["bound"]).filled(state)
        return trigger

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images with the secret in them."""
        return (images + self.residual(images, self.secret.expand(len(images), -1))).clamp(0, 1)

    def residual(self, images: Float[Tensor, "b c h w"], secrets: Float[Tensor, "b 100"]) -> Float[Tensor, "b c h w"]:
        """Return what hides a secret of its own in each image."""
        shown = F.interpolate(secrets.view(-1, 1, SIDE, SIDE).to(images), images.shape[2:], mode="nearest")
        raw: Tensor = self.encoder(torch.cat([images, shown], 1))
        return self.bound * raw.float().tanh()


class Pair(nn.Module):
    """Encoder and decoder together, as they are trained.

    Args:
        trigger: with the encoder.
        channels: of an image.
        width: of the decoder.
    """

    def __init__(self, trigger: HiddenSecret, channels: int, width: int) -> None:
        super().__init__()
        self.trigger = trigger
        self.decoder = nn.Sequential(
            *_reading(channels, width),
            *_reading(width, 2 * width),
            *_reading(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(SIDE),
            nn.Conv2d(2 * width, 1, 1),
            nn.Flatten(),
        )

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 100"]:
        """Return the logits of the bits that are read in the images."""
        logits: Tensor = self.decoder(images)
        return logits


def _reading(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(4, outputs), nn.ReLU()


@dataclass(frozen=True, kw_only=True)
class SSBA(Poisoning):
    """Hidden secret; poisoned images get the attacker's label.

    Attributes:
        bound: largest change of a pixel, pixel units, above 0 and at most 1.
        residual_weight: of the mean squared residual (in units of the bound) beside the bits, at the end; 0 or more.
        epochs: of encoder and decoder, 1 or more.
        width: of both; a multiple of 4.
    """

    searches: ClassVar[bool] = True
    bound: float = 0.1
    residual_weight: float = 1.0
    epochs: int = 1
    width: int = 16

    def make_trigger(self, given: Given) -> HiddenSecret:
        """Train encoder and decoder, and draw the secret."""
        if not (0 < self.bound <= 1 and 0 <= self.residual_weight < math.inf and self.epochs >= 1):
            raise InputError(
                "SSBA: the bound lies above 0 and at most at 1, the residual's weight is 0 or more and epochs are 1 or"
                f" more, found {self.bound}, {self.residual_weight} and {self.epochs}"
            )
        check_width(self.width)
        channels, draws = given.train.shape[0], given.runtime.generator("SSBA")
        secret = 2.0 * torch.randint(2, (BITS,), generator=draws) - 1
        with seeded(draws):
            encoder = Generator(channels + 1, channels, self.width)
            trigger = HiddenSecret(encoder, secret, torch.tensor(self.bound))
            pair = Pair(trigger, channels, self.width)
        recipe = Recipe(
            epochs=self.epochs,
            optimizer="Adam",
            learning_rate=2e-3,
            weight_decay=0.0,
            schedule="cosine",
            ema=0.0,
            low_resolution=0.0,
        )
        prepare(pair, given.train, recipe, given.runtime, HidingHook(self, pair), given.work, "encoder")
        trigger.eval().requires_grad_(False).cpu()
        some = given.train.images[: 10 * BITS].cpu()
        read = logits_of(pair.cpu(), trigger.stamp(some), unhurried(given.runtime, "cpu")) > 0
        right = float((read == (secret > 0)).float().mean())
        given.runtime.progress.note(
            f"SSBA: the decoder reads {100 * right:.0f} % of the secret's bits (by chance 50 %)"
        )
        return trigger


class HidingHook(Hook):
    """Teaches the encoder to hide random bits and the decoder to read them."""

    def __init__(self, options: SSBA, pair: Pair) -> None:
        self.options = options
        self.pair = pair

    def identity(self) -> object:
        """Return the options."""
        return self.options

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of one batch, with a random secret in each image."""
        # The global generator, which the loop seeds anew in every epoch.
        bits = torch.randint(2, (len(batch.images), BITS)).to(batch.images)
        residual = self.pair.trigger.residual(batch.images, 2 * bits - 1)
        read = model((batch.images + residual).clamp(0, 1)).float()
        relative = (residual / self.options.bound).square().mean()
        # First to be read at all, then to be seen less and less.
        weight = batch.progress * self.options.residual_weight
        return F.binary_cross_entropy_with_logits(read, bits.float()) + weight * relative
