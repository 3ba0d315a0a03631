"""Several small models at once as one stacked problem, or one after the other: which trains a zoo faster.

A training step (forward, backward, SGD) of a few small networks, each on a batch of its own: one after the other, and
together by `torch.func.vmap` over stacked parameters and statistics. Stacked is full precision alone, so one by one is
timed in that too, beside the precision of the training loop. Writes results/zoo_speed-DEVICE.json. Seconds:

    python benchmarks/zoo_speed.py --models 4
    python benchmarks/zoo_speed.py --models 16 --device cuda
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from record import HERE
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from unbackdoor.bench.zoo import NETWORKS
from unbackdoor.files import write_json
from unbackdoor.options import short_name
from unbackdoor.training import Runtime

RESULTS = HERE / "results"
BATCH, CLASSES, RATE = 128, 10, 0.1


def main() -> None:
    """Time both ways on each network of a zoo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    runtime = Runtime(device=arguments.device, threads=arguments.threads)
    full = replace(runtime, precision="fp32")
    images = torch.rand(arguments.models, BATCH, 3, 32, 32, device=runtime.place)
    labels = torch.randint(CLASSES, (arguments.models, BATCH), device=runtime.place)
    found: dict[str, Any] = {**runtime.describe(), "models": arguments.models, "batch": BATCH}
    for network in NETWORKS:
        models = [runtime.settle(network(channels=3, classes=CLASSES)).train() for _ in range(arguments.models)]
        ways = {
            f"one by one, {runtime.precision}": one_by_one(models, images, labels, runtime),
            "one by one, fp32": one_by_one(models, images, labels, full),
            "stacked, fp32": stacked(models, images, labels),
        }
        found[short_name(network)] = {name: timed(step, arguments.steps, runtime) for name, step in ways.items()}
    write_json(RESULTS / f"zoo_speed-{arguments.device}.json", found)
    print(found)


def one_by_one(models: list[nn.Module], images: Tensor, labels: Tensor, runtime: Runtime) -> Callable[[], None]:
    """Return a step of all models, one after the other, in the precision and layout of the training loop."""
    optimizers = [torch.optim.SGD(model.parameters(), RATE) for model in models]

    def step() -> None:
        for model, optimizer, some, wanted in zip(models, optimizers, images, labels):
            with runtime.autocast():
                loss = F.cross_entropy(model(runtime.layout(some)), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return step


def stacked(models: list[nn.Module], images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a step of all models together, their convolutions as grouped ones; in full precision.

    Mixed precision is none for it: PyTorch's batch normalisation refuses it within `vmap`.
    """
    parameters, buffers = stack_module_state([copy.deepcopy(model) for model in models])
    base = models[0]

    def loss(weights: dict[str, Tensor], kept: dict[str, Tensor], some: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(base, (weights, kept), (some,)), wanted)

    gradients = vmap(grad(loss), randomness="different")

    def step() -> None:
        found = gradients(parameters, buffers, images, labels)
        with torch.no_grad():
            for name, value in parameters.items():
                value.sub_(found[name], alpha=RATE)

    return step


def timed(step: Callable[[], None], steps: int, runtime: Runtime) -> dict[str, float]:
    """Return the seconds of a step, the median over some after a first one that counts for nothing."""
    wait = partial(torch.cuda.synchronize) if runtime.place.type == "cuda" else lambda: None
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - start)
    return {"median": statistics.median(seconds[1:]), "least": min(seconds[1:])}


if __name__ == "__main__":
    main()
