"""The pictures of the attacks' method cards: clean, triggered, and ten times the difference.

Made from two photographs that scikit-learn ships (by danielbuechele, CC BY 2.0): square pieces of them, which strip of
which photograph a piece comes from being its class. Attacks that learn their trigger learn it here, in a short
training.

    python docs/make_pictures.py [ATTACK ...]
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from unbackdoor.attacks import ATTACKS, FittedAttack
from unbackdoor.attacks.trigger import to_bytes
from unbackdoor.commands.gallery import shown
from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.models.preact_resnet18 import PreActResNet18
from unbackdoor.report import amplified_difference
from unbackdoor.training import Recipe, Runtime, fit, new_network

FOLDER = Path(__file__).parent / "methods" / "pictures"
CARDS = {
    "AdaptiveBlend": "adaptive-blend",
    "AdaptivePatch": "adaptive-patch",
    "AdaptiveTrap": "adaptive-trap",
    "InputAware": "input-aware",
    "LabelConsistent": "label-consistent",
    "MESAPatch": "mesa-patch",
}
"""Where the name of a card is not the attack's in small letters."""

PIECES, PIECE, SIDE, STRIPS = 800, 160, 64, 4
"""How many, pixels of the photograph along each side, the same after resizing, and classes a photograph."""
LEARNING = Recipe(epochs=12, batch_size=64, learning_rate=0.05, ema=0.0, low_resolution=0.0)
EXAMPLES, ENLARGED, GAP = 2, 2, 8


def pieces(seed: int) -> ImageSet:
    """Return random pieces of both photographs."""
    draws = torch.Generator().manual_seed(seed)
    photographs = [torch.from_numpy(one.copy()).permute(2, 0, 1) for one in load_sample_images().images]
    images, labels = [], []
    for number in range(PIECES):
        label = number % (STRIPS * len(photographs))
        photograph = photographs[label // STRIPS]
        _, height, width = photograph.shape
        first = (width - PIECE) * (label % STRIPS) // STRIPS
        column = first + int(torch.randint((width - PIECE) // STRIPS, (), generator=draws))
        row = int(torch.randint(height - PIECE, (), generator=draws))
        images.append(photograph[:, row : row + PIECE, column : column + PIECE])
        labels.append(label)
    small = F.interpolate(torch.stack(images).float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
    names = tuple(f"{name}, strip {strip}" for name in ("temple", "flower") for strip in range(STRIPS))
    return ImageSet(images=to_bytes(small), labels=torch.tensor(labels), class_names=names, name="photographs")


def panels(fitted: FittedAttack, test: ImageSet) -> UInt8[Tensor, "3 h w"]:
    """Return clean, triggered and amplified difference of a few images side by side."""
    counted = fitted.criterion.counted(test.labels).nonzero().squeeze(1)
    chosen = counted[torch.linspace(0, len(counted) - 1, EXAMPLES + 2).long()[1:-1]]
    row: list[Float[Tensor, "3 s s"]] = []
    for clean in test.images[chosen]:
        before, after = clean.float() / 255, fitted.trigger.stamp(clean[None])[0].float() / 255
        row += [before, after, amplified_difference(before, after)]
    large = [one.repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2) for one in row]
    padded = [F.pad(one, (0, GAP if number + 1 < len(large) else 0), value=1.0) for number, one in enumerate(large)]
    return to_bytes(torch.cat(padded, 2))


def main() -> None:
    """Draw the pictures of all attacks."""
    train, test = pieces(0), pieces(1)
    runtime = Runtime(device="cpu", threads=1)
    FOLDER.mkdir(exist_ok=True)

    def build() -> Network:
        return new_network(partial(PreActResNet18, width=8), train, runtime)

    with tempfile.TemporaryDirectory() as work:
        for name in sys.argv[1:] or ATTACKS:
            attack = shown(ATTACKS[name], train)
            fitted = attack.prepare(train, build, runtime, Path(work))
            if fitted.learns:
                fit(build(), train, LEARNING, runtime, hook=fitted.hook)
            path = FOLDER / f"{CARDS.get(name, name.lower())}.png"
            Image.fromarray(panels(fitted, test).permute(1, 2, 0).numpy()).save(path, optimize=True)
            print(path, flush=True)


if __name__ == "__main__":
    main()
