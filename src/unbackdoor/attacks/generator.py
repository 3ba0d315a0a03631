"""The small image-to-image network of the attacks that learn their trigger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.attacks.trigger import Trigger, small_trial
from unbackdoor.errors import InputError
from unbackdoor.limits import MAX_CHANNELS

MAX_WIDTH = 256


class Generator(nn.Module):
    """A U-Net of three scales for images of any size.

    Group normalisation, so that what happens to an image does not depend on its batch, in training or testing.

    Args:
        inputs: channels in.
        outputs: channels out, before any activation.
        width: channels of the first scale; a multiple of 4.
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.enter = _block(inputs, width, 1)
        self.down1 = _block(width, 2 * width, 2)
        self.down2 = _block(2 * width, 4 * width, 2)
        self.up2 = _block(6 * width, 2 * width, 1)
        self.up1 = _block(3 * width, width, 1)
        self.leave = nn.Conv2d(width, outputs, 3, padding=1)
        # In one layout always: another adds up in another order, and would make other pixels.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Return one map an output, of the size of the images."""
        fine: Tensor = self.enter(images)
        middle: Tensor = self.down1(fine)
        coarse: Tensor = self.down2(middle)
        middle = self.up2(torch.cat([_enlarged(coarse, middle), middle], 1))
        fine = self.up1(torch.cat([_enlarged(middle, fine), fine], 1))
        result: Tensor = self.leave(fine)
        return result


class LearnedTrigger(Trigger):
    """Base of the triggers that hold generators: built from a state dict by the sizes of its tensors.

    A generator can be trained through `forward`; as a trigger it is used without gradients (`stamp`).
    """

    def trial_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return a small shape: generators take any size."""
        return small_trial(shape)

    @staticmethod
    def generator_in(state: dict[str, Tensor], name: str) -> Generator:
        """Return a generator with the sizes that the state has for the one of that name; its weights are new.

        Raises:
            KeyError: there is none.
            InputError: the tensors of the state are not those of a generator, or too large for one.
        """
        found = {
            key.removeprefix(f"{name}."): value.shape for key, value in state.items() if key.startswith(f"{name}.")
        }
        first, last = found["enter.0.weight"], found["leave.weight"]
        if not len(first) == len(last) == 4:
            raise InputError(f"the weights of {name} are not those of convolutions")
        width, inputs, outputs = first[0], first[1], last[0]
        check_width(width)
        if not (1 <= inputs <= MAX_CHANNELS + 1 and 1 <= outputs <= MAX_CHANNELS):
            raise InputError(f"{name} maps {inputs} channels to {outputs}")
        # Nothing is allocated before every shape is known to be right.
        with torch.device("meta"):
            expected = {key: value.shape for key, value in Generator(inputs, outputs, width).state_dict().items()}
        if found != expected:
            raise InputError(f"the weights of {name} do not fit each other")
        return Generator(inputs, outputs, width)

    def filled(self, state: dict[str, Tensor]) -> Any:
        """Return this trigger with the weights of the state."""
        self.load_state_dict(state)
        return self.eval().requires_grad_(False)


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(4, outputs), nn.ReLU(inplace=True)
    )


def _enlarged(coarse: Float[Tensor, "b i h w"], fine: Float[Tensor, "b j p q"]) -> Float[Tensor, "b i p q"]:
    return F.interpolate(coarse, fine.shape[2:], mode="nearest")


def check_width(width: int) -> None:
    """Raise InputError unless a generator can have this width."""
    if width % 4 or not 4 <= width <= MAX_WIDTH:
        raise InputError(f"the width of a generator is a multiple of 4 from 4 to {MAX_WIDTH}, found {width}")


@contextmanager
def seeded(seeds: torch.Generator) -> Iterator[None]:
    """Let everything made in the block depend on the seeds alone; the CPU's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=seeds)))
        yield
