"""Train a network on data as they are, or securely on data that nobody vouches for.

Without --method it is trained plainly, and data that `unbackdoor poison` wrote give a backdoored model. With one, such
as TrapAndReplace, the backdoor is to be kept out. Either way the model's file says what `poison` did to the data, and
the attack is measured.

Writes model.safetensors, run.json and report.html, and what else a method trained, such as decoder.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor.attacks import SavedAttack, load_attack
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import NETWORK, Choice
from unbackdoor.commands.reconstructed import reconstruction_facts, reconstruction_of, reconstruction_rows
from unbackdoor.commands.workspace import Run, evaluation_rows, new_folder, save_trained
from unbackdoor.data import DefenderData, ImageSet, clean_rows, read_images
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.folder import ATTACK, MODEL, PAGE, RESUME
from unbackdoor.models import Network
from unbackdoor.models.mark import repaired_mark
from unbackdoor.options import options_of
from unbackdoor.report import Report, evaluation_metrics, loss_chart, write_report
from unbackdoor.secure import TRAINERS, SecureTrainer, Trained
from unbackdoor.secure.saved import save_part
from unbackdoor.training import Recipe, Runtime, check_fits, fit, network_options, new_network

CHOICES = {"model": NETWORK, "method": Choice(TRAINERS, None)}


def run(
    *,
    data: str,
    out: Path,
    model: Callable[[int, int], nn.Module],
    method: SecureTrainer | None = None,
    recipe: Recipe = Recipe(),
    clean: str | None = None,
    clean_size: int = 2500,
    runtime: Runtime,
) -> Outcome:
    """Train a model.

    Args:
        data: training and test images: digits, a folder (parquet or a folder a class), an .npz, or a hub id.
        out: folder for the results; an interrupted run in it goes on.
        model: the network.
        method: how a backdoor in the data is kept out; plain training if None.
        recipe: of plain training; a method has options of its own.
        clean: images that are known to be clean, for a method that needs them: a folder, an .npz, digits, or a hub id.
        clean_size: clean images used, drawn class-balanced by the seed; all if there are fewer.
        runtime: device, seed, budget, progress.
    """
    _check_options(method, recipe, clean)
    clock = Run("train", runtime)
    train, test = read_images(data, "train"), read_images(data, "test")
    samples, rows = _clean_samples(clean, clean_size, runtime.seed)
    known = DefenderData(untrusted=train, clean=samples)

    def build() -> Network:
        return new_network(model, train, runtime)

    with new_folder(out, clock.command) as folder:
        check_fits(build(), train, test)
        attack = known_attack(Path(data).expanduser(), train)
        trained = _trained(build, known, method, recipe, runtime, folder / RESUME)
        network, history = trained.network, trained.history
        trigger, criterion = (attack.trigger, attack.criterion) if attack else (None, None)
        evaluation = evaluate(network, test, runtime, trigger, criterion)
        rebuilt = reconstruction_of(network, trained.parts.get("decoder"), test, runtime, trigger, criterion)
        clock.inputs = {train.name: train.digest(), test.name: test.digest()}
        if samples is not None:
            clock.inputs[f"clean: {samples.name}"] = samples.digest()
        if attack:
            clock.inputs[ATTACK] = attack.sha256
        how = {"recipe": options_of(recipe)} if method is None else {"method": options_of(method)}
        clock.options = {"model": network_options(network), **how}
        page = Report(
            title=f"{network.description.architecture} on {train.name}{_by(method)}",
            metrics=evaluation_metrics(evaluation, None),
            charts=[loss_chart(history, "epoch", "training loss")] if history.loss else [],
            facts={**reconstruction_facts(rebuilt), **clock.facts()},
            notes=history.notes,
        )
        write_report(folder / PAGE, page)
        measured: dict[str, Any] = {"evaluation": evaluation.to_json()}
        if rebuilt is not None:
            measured["reconstruction"] = rebuilt.to_json()
        told = {} if method is None else {"notes": list(history.notes), "clean_rows": rows}
        clock.write(folder, **measured, loss=history.loss, **told)
        for name, part in trained.parts.items():
            save_part(folder / f"{name}.safetensors", name, part, clock.record())
        mark = {"attack": attack.options, "criterion": attack.criterion.to_json()} if attack else None
        if method is not None:
            # Whether the backdoor was kept out is for others to find out, as with a repair.
            mark = repaired_mark(mark)
        save_trained(folder / MODEL, network, folder / RESUME, provenance=clock.record(), backdoored=mark)
    return Outcome(
        title=page.title,
        rows=[
            *evaluation_rows(evaluation),
            *reconstruction_rows(rebuilt),
            ("time", f"{clock.seconds:.0f} s"),
            ("model", str(folder / MODEL)),
        ],
        result={**measured, "model": str(folder / MODEL)},
        page=folder / PAGE,
    )


def _by(method: SecureTrainer | None) -> str:
    return "" if method is None else f", trained by {type(method).__name__}"


def _check_options(method: SecureTrainer | None, recipe: Recipe, clean: str | None) -> None:
    """Refuse options that would do nothing.

    Raises:
        InputError: a recipe beside a method, or clean images without one.
    """
    if method is not None and recipe != Recipe():
        name = type(method).__name__
        raise InputError(f"--recipe is of plain training; {name} has options of its own, see --method {name} --help")
    if clean is not None and (method is None or "clean" not in method.needs):
        name = "plain training" if method is None else type(method).__name__
        raise InputError(f"{name} uses no clean images; name a --method that does, or leave --clean out")


def _clean_samples(clean: str | None, size: int, seed: int) -> tuple[ImageSet | None, list[int]]:
    """Return the clean samples and their rows, if there are any."""
    if clean is None:
        return None, []
    images = read_images(clean, "train")
    rows = clean_rows(images, size, seed)
    return images.subset(rows), rows.tolist()


def _trained(
    build: Callable[[], Network],
    known: DefenderData,
    method: SecureTrainer | None,
    recipe: Recipe,
    runtime: Runtime,
    resume: Path,
) -> Trained:
    """Return the model, trained by the method, or plainly."""
    if method is not None:
        return method.train(build, known, runtime, resume)
    network = build()
    history = fit(network, known.need_untrusted("training"), recipe, runtime, resume=resume)
    return Trained(network=network, history=history)


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
