"""Poison a data set, train a network on it, and measure the backdoor.

Writes model.safetensors, attack.safetensors (trigger, success criterion, poisoned rows), run.json and report.html.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from unbackdoor.attacks import ATTACKS, COVER, POISON, Attack, FittedAttack, Stealth, save_attack
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import NETWORK, Choice
from unbackdoor.commands.stealth import stealth_facts, stealth_rows, visibility
from unbackdoor.commands.workspace import Run, evaluation_rows, new_folder, save_trained
from unbackdoor.data import ImageSet, read_images
from unbackdoor.evaluate import Evaluation, evaluate
from unbackdoor.folder import ATTACK, MODEL, PAGE, RESUME, WORK
from unbackdoor.models import Network
from unbackdoor.options import files_of, options_of
from unbackdoor.report import Report, Verdict, evaluation_metrics, loss_chart, trigger_gallery, write_report
from unbackdoor.training import History, Recipe, Runtime, check_fits, fit, network_options, new_network

CHOICES = {"attack": Choice(ATTACKS, "BadNets"), "model": NETWORK}


def run(
    *,
    data: str,
    out: Path,
    attack: Attack,
    model: Callable[[int, int], nn.Module],
    recipe: Recipe = Recipe(),
    runtime: Runtime,
) -> Outcome:
    """Make a backdoored model.

    Args:
        data: training and test images: digits, a folder (parquet or a folder a class), an .npz, or a hub id.
        out: folder for the results; an interrupted run in it goes on.
        attack: how the data are poisoned.
        model: the network.
        recipe: how it is trained.
        runtime: device, seed, budget, progress.
    """
    clock = Run("attack", runtime)
    train, test = read_images(data, "train"), read_images(data, "test")
    with new_folder(out, clock.command) as folder:
        clock.inputs = {train.name: train.digest(), test.name: test.digest(), **files_of(attack)}
        network, fitted, history, evaluation = poison_and_train(train, test, attack, model, recipe, runtime, folder)
        clock.options = {
            "attack": options_of(attack),
            "model": network_options(network),
            "recipe": options_of(recipe),
        }
        save_attack(folder / ATTACK, fitted, options_of(attack))
        seen = visibility(test, fitted)
        write_report(folder / PAGE, attack_page(clock, attack, fitted, test, evaluation, history, seen))
        clock.write(folder, evaluation=evaluation.to_json(), stealth=seen.to_json(), loss=history.loss)
        mark = {"attack": options_of(attack), "criterion": fitted.criterion.to_json()}
        # The model comes last: a folder with a model in it is a finished one.
        save_trained(folder / MODEL, network, folder / RESUME, provenance=clock.record(), backdoored=mark)
    return Outcome(
        title=f"{type(attack).__name__} on {train.name}",
        rows=[
            *evaluation_rows(evaluation),
            *stealth_rows(seen),
            ("time", f"{clock.seconds:.0f} s"),
            ("model", str(folder / MODEL)),
        ],
        result={"evaluation": evaluation.to_json(), "stealth": seen.to_json(), "model": str(folder / MODEL)},
        page=folder / PAGE,
    )


def poison_and_train(
    train: ImageSet,
    test: ImageSet,
    attack: Attack,
    model: Callable[[int, int], nn.Module],
    recipe: Recipe,
    runtime: Runtime,
    folder: Path | None,
) -> tuple[Network, FittedAttack, History, Evaluation]:
    """Return the backdoored network, the fitted attack, what happened in training, and what it measures.

    An interrupted run with the same folder goes on.
    """

    def build() -> Network:
        return new_network(model, train, runtime)

    network = build()
    check_fits(network, train, test)
    fitted = attack.prepare(train, build, runtime, folder / WORK if folder else None)
    history = fit(
        network,
        fitted.train,
        recipe,
        runtime,
        hook=fitted.hook,
        resume=folder / RESUME if folder else None,
        description=type(attack).__name__,
    )
    evaluation = evaluate(network, test, runtime, fitted.trigger, fitted.criterion)
    return network, fitted, history, evaluation


def attack_page(
    clock: Run,
    attack: Attack,
    fitted: FittedAttack,
    test: ImageSet,
    evaluation: Evaluation,
    history: History,
    seen: Stealth,
) -> Report:
    """Return the report of an attack."""
    name = type(attack).__name__
    return Report(
        title=f"{name} on {test.name.split('/')[0]}",
        verdict=Verdict(
            level="info",
            headline=f"A model was trained with {name}; its trigger works on {success(evaluation)} of the images.",
            detail=f"{poisoned(fitted)} The model's file says so.",
            calibrated=True,
        ),
        metrics=evaluation_metrics(evaluation, None),
        galleries=[trigger_gallery(test, fitted.trigger, fitted.criterion)],
        charts=[loss_chart(history, "epoch", "training loss")],
        facts={"How visible the trigger is": stealth_facts(seen), **clock.facts()},
    )


def success(evaluation: Evaluation) -> str:
    """Return the attack success rate in percent."""
    return "none" if evaluation.asr is None else f"{100 * evaluation.asr.value:.1f} %"


def poisoned(fitted: FittedAttack) -> str:
    """Return how much was poisoned, in one sentence."""
    if fitted.hook is not None:
        return "The attack controls training and poisoned its batches."
    poison, cover = int((fitted.kinds == POISON).sum()), int((fitted.kinds == COVER).sum())
    covers = f", and {cover} carry the trigger with their true labels" if cover else ""
    return f"{poison} of {len(fitted.train)} training images were poisoned{covers}."
