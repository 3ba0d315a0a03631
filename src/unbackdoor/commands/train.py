"""Train a network on data as they are.

Data that `unbackdoor poison` wrote give a backdoored model: its file says so, and its attack is measured.

Writes model.safetensors, run.json and report.html.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from unbackdoor.attacks import SavedAttack, load_attack
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import NETWORK
from unbackdoor.commands.workspace import Run, evaluation_rows, new_folder, save_trained
from unbackdoor.data import ImageSet, read_images
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.folder import ATTACK, MODEL, PAGE, RESUME
from unbackdoor.options import options_of
from unbackdoor.report import Report, evaluation_metrics, loss_chart, write_report
from unbackdoor.training import Recipe, Runtime, check_fits, fit, network_options, new_network

CHOICES = {"model": NETWORK}


def run(
    *,
    data: str,
    out: Path,
    model: Callable[[int, int], nn.Module],
    recipe: Recipe = Recipe(),
    runtime: Runtime,
) -> Outcome:
    """Train a model.

    Args:
        data: training and test images: digits, a folder (parquet or a folder a class), an .npz, or a hub id.
        out: folder for the results; an interrupted run in it goes on.
        model: the network.
        recipe: how it is trained.
        runtime: device, seed, budget, progress.
    """
    clock = Run("train", runtime)
    train, test = read_images(data, "train"), read_images(data, "test")
    with new_folder(out, clock.command) as folder:
        network = new_network(model, train, runtime)
        check_fits(network, train, test)
        attack = known_attack(Path(data), train)
        history = fit(network, train, recipe, runtime, resume=folder / RESUME)
        trigger, criterion = (attack.trigger, attack.criterion) if attack else (None, None)
        evaluation = evaluate(network, test, runtime, trigger, criterion)
        clock.inputs = {train.name: train.digest(), test.name: test.digest()}
        if attack:
            clock.inputs[ATTACK] = attack.sha256
        clock.options = {"model": network_options(network), "recipe": options_of(recipe)}
        page = Report(
            title=f"{network.description.architecture} on {train.name}",
            metrics=evaluation_metrics(evaluation, None),
            charts=[loss_chart(history, "epoch", "training loss")],
            facts=clock.facts(),
        )
        write_report(folder / PAGE, page)
        clock.write(folder, evaluation=evaluation.to_json(), loss=history.loss)
        mark = {"attack": attack.options, "criterion": attack.criterion.to_json()} if attack else None
        save_trained(folder / MODEL, network, folder / RESUME, provenance=clock.record(), backdoored=mark)
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


def known_attack(data: Path, train: ImageSet) -> SavedAttack | None:
    """Return the attack that `unbackdoor poison` wrote beside the data, or None.

    Raises:
        InputError: it is damaged, or was not made for these images.
    """
    # The folder of the parquet files may be named instead of the one around it.
    path = (data.parent if data.is_dir() and data.name == "data" else data) / ATTACK
    if not path.is_file():
        return None
    attack = load_attack(path)
    attack.check_fits(train.shape, train.classes, path.parent)
    if len(attack.kinds) != len(train):
        raise InputError(f"{path} was not made for the images beside it; remove it, or poison the data again")
    return attack
