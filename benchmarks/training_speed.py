"""How fast the training loop is, beside the bare step, the usual loop, and the machine.

    python benchmarks/training_speed.py

(a) bare: forward and backward pass and optimiser step on one batch that is there already, same precision and layout.
(b) usual: fp32, NCHW, one PIL image at a time through crop, flip and normalisation in DataLoader workers.
(c) peak: a large bf16 matrix product.

Beside them, what could raise the share of the peak: the bare step on larger batches, and compiled.

The loops take turns, so that a change of the machine's speed hits all of them; figures are medians of the turns.
Writes results/training_speed.json and results/training_speed.md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unbackdoor.data import ImageSet
from unbackdoor.models.network import Description, Network
from unbackdoor.models.preact_resnet18 import PreActResNet18
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit

RESULTS = Path(__file__).parent / "results"
BATCH = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
MULTIPLY_ADDS = 0.5558e9
"""Of one forward pass of PreActResNet18 at width 64, 32 x 32; it grows with the square of the width."""


def images(count: int) -> ImageSet:
    """Return random images: speed does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(
        images=pixels.contiguous(memory_format=torch.channels_last),
        labels=torch.arange(count) % 10,
        class_names=tuple("0123456789"),
    )


def network(width: int) -> Network:
    """Return an untrained network."""
    torch.manual_seed(0)
    description = Description(
        architecture="PreActResNet18",
        arguments={"width": width},
        class_names=tuple("0123456789"),
        image_shape=(3, 32, 32),
        mean=MEAN,
        std=STD,
    )
    return Network(PreActResNet18(3, 10, width), description)


class Timed(Hook):
    """Notes when each step ends."""

    def __init__(self) -> None:
        super().__init__(0.1)
        self.ends: list[float] = []

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        """Do the plain step."""
        loss = super().update(model, batch, optimizer)
        if batch.images.is_cuda:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        return loss


def ours(width: int, steps: int, runtime: Runtime) -> Callable[[], float]:
    """Return a turn of our loop, data and augmentation included: images a second."""
    data, model = images(BATCH * (steps + 1)), network(width)
    recipe = Recipe(epochs=1, batch_size=BATCH, learning_rate=0.01, low_resolution=0.0, augmentation="crop-flip")

    def turn() -> float:
        hook = Timed()
        fit(model, data, recipe, runtime, hook=hook)
        return BATCH * (len(hook.ends) - 1) / (hook.ends[-1] - hook.ends[0])

    return turn


def timed(step: Callable[[], None], steps: int, size: int = BATCH) -> Callable[[], float]:
    """Return a turn of so many steps of `size` images after one that is not counted: images a second."""

    def turn() -> float:
        step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return size * steps / (time.perf_counter() - start)

    return turn


def bare(width: int, steps: int, runtime: Runtime, size: int = BATCH, compiled: bool = False) -> Callable[[], float]:
    """Return a turn of the bare step on batches of `size`: images a second."""
    model = runtime.settle(network(width)).train()
    forward = torch.compile(model) if compiled else runtime.compiled(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batch = runtime.layout(torch.rand(size, 3, 32, 32))
    labels = (torch.arange(size) % 10).to(runtime.place)

    def step() -> None:
        with runtime.autocast():
            loss = F.cross_entropy(forward(batch), labels, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if batch.is_cuda:
            torch.cuda.synchronize()

    return timed(step, steps * BATCH // size or 1, size)


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Images as most published code reads them: PIL, one at a time."""

    def __init__(self, count: int) -> None:
        self.pixels = images(count).images.permute(0, 2, 3, 1).contiguous().numpy()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        picture = ImageOps.expand(Image.fromarray(self.pixels[row]), 4)
        left, top = random.randint(0, 8), random.randint(0, 8)
        picture = picture.crop((left, top, left + 32, top + 32))
        if random.random() < 0.5:
            picture = ImageOps.mirror(picture)
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255)
        return (tensor - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], row % 10


def usual(width: int, steps: int, runtime: Runtime) -> Callable[[], float]:
    """Return a turn of the loop that most published code uses: images a second."""
    device = runtime.place
    model = network(width).body.to(device, memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        OneByOne(BATCH * (steps + 2)),
        BATCH,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    stream = batches()

    def step() -> None:
        pixels, labels = next(stream)
        loss = F.cross_entropy(model(pixels.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return timed(step, steps)


def peak(runtime: Runtime) -> float:
    """Return the operations a second of a large bf16 matrix product."""
    side = 2048 if runtime.place.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=runtime.place, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        if a.is_cuda:
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def measure(width: int, steps: int, turns: int, runtime: Runtime) -> dict[str, Any]:
    """Return images a second of the three loops, in turns, and the share of the machine's peak."""
    loops = {
        "ours": ours,
        "bare": bare,
        "usual": usual,
        "bare, batch 256": partial(bare, size=256),
        "bare, batch 512": partial(bare, size=512),
    }
    if shutil.which("c++"):  # torch.compile needs a compiler on a CPU
        loops["bare, compiled"] = partial(bare, compiled=True)
    prepared = {name: make(width, steps, runtime) for name, make in loops.items()}
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(turns + 1):
        for name, turn in prepared.items():
            speed = turn()
            if number:  # the first turn warms up
                speeds[name].append(speed)
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {
        other: statistics.median(a / b for a, b in zip(speeds["ours"], speeds[other])) for other in ("bare", "usual")
    }
    # A training step costs three forward passes, a multiply-add two operations.
    work = 6 * MULTIPLY_ADDS * (width / 64) ** 2
    top = peak(runtime)
    return {
        "width": width,
        "timed_steps": steps * turns,
        "images_per_second": {name: round(value, 1) for name, value in middle.items()},
        "all_turns": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
        "ours_over_bare": round(ratios["bare"], 3),
        "ours_over_usual": round(ratios["usual"], 2),
        "peak_tflops": round(top / 1e12, 3),
        "share_of_peak": {name: round(value * work / top, 3) for name, value in middle.items()},
    }


def main() -> None:
    """Measure both widths and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 chooses by measuring")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    arguments = parser.parse_args()
    runtime = Runtime(threads=arguments.threads, device=arguments.device)
    described = runtime.describe()
    rows = [measure(width, 10 if width < 64 else 7, 3, runtime) for width in arguments.widths]
    RESULTS.mkdir(exist_ok=True)
    name = f"training_speed{'-cuda' if runtime.place.type == 'cuda' else ''}"
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": described, "rows": rows}, indent=2) + "\n")
    lines = [
        "# Speed of the training loop",
        "",
        f"Made by `python benchmarks/training_speed.py`: PreActResNet18, batches of {BATCH}, 32 x 32; medians of three"
        " turns in one run; data are random.",
        "",
        ", ".join(f"{key} {value}" for key, value in described.items()),
        "",
        "| width | ours/bare | ours/usual | peak, TFLOP/s |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['width']} | {row['ours_over_bare']} | {row['ours_over_usual']} | {row['peak_tflops']} |"
        for row in rows
    ]
    lines += ["", "| width | loop | images/s | share of peak |", "|---:|---|---:|---:|"]
    for row in rows:
        for loop, speed in row["images_per_second"].items():
            lines.append(f"| {row['width']} | {loop} | {speed} | {row['share_of_peak'][loop]} |")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
