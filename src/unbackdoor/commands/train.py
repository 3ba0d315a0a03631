"""Train a clean network.

Writes model.safetensors, run.json and report.html.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.pictures import loss_chart
from unbackdoor.commands.training import NETWORK, network_options, new_network
from unbackdoor.commands.workspace import (
    MODEL,
    PAGE,
    RESUME,
    Run,
    evaluation_rows,
    metrics,
    new_folder,
    options_of,
    save_trained,
)
from unbackdoor.data import read_images
from unbackdoor.evaluate import evaluate
from unbackdoor.report import Report, write_report
from unbackdoor.training import Recipe, Runtime, check_fits, fit

CHOICES = {"model": NETWORK}


def run(
    *,
    data: str,
    out: Path,
    model: Callable[[int, int], nn.Module],
    recipe: Recipe = Recipe(),
    runtime: Runtime,
) -> Outcome:
    """Train a clean model.

    Args:
        data: training and test images: digits, a folder (parquet or a folder a class), an .npz, or a hub id.
        out: folder for the results; an interrupted run in it goes on.
        model: the network.
        recipe: how it is trained.
        runtime: device, seed, budget, progress.
    """
    clock = Run("train", runtime)
    train, test = read_images(data, "train"), read_images(data, "test")
    folder = new_folder(out, clock.command)
    network = new_network(model, train, runtime)
    check_fits(network, train, test)
    history = fit(network, train, recipe, runtime, resume=folder / RESUME)
    evaluation = evaluate(network, test, runtime)
    clock.inputs = {train.name: train.digest(), test.name: test.digest()}
    clock.options = {"model": network_options(network), "recipe": options_of(recipe)}
    page = Report(
        title=f"{network.description.architecture} on {train.name}",
        metrics=metrics(evaluation, None),
        charts=[loss_chart(history, "epoch", "training loss")],
        facts=clock.facts(),
    )
    write_report(folder / PAGE, page)
    clock.write(folder, evaluation=evaluation.to_json(), loss=history.loss)
    save_trained(folder / MODEL, network, folder / RESUME, provenance=clock.record())
    return Outcome(
        title=page.title,
        rows=[
            *evaluation_rows(evaluation),
            ("time", f"{clock.seconds:.0f} s"),
            ("model", str(folder / MODEL)),
        ],
        result={"evaluation": evaluation.to_json(), "model": str(folder / MODEL)},
        page=folder / PAGE,
    )
