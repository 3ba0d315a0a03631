"""Measure accuracy and, with an attack, attack success and robust accuracy of a model on test images."""

from __future__ import annotations

from pathlib import Path

from unbackdoor.attacks import SavedAttack, load_attack
from unbackdoor.commands.mark import notes_of
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.pictures import trigger_gallery
from unbackdoor.commands.workspace import (
    ATTACK,
    MODEL,
    PAGE,
    Run,
    evaluation_rows,
    metrics,
    writable_folder,
)
from unbackdoor.data import read_images
from unbackdoor.errors import InputError
from unbackdoor.evaluate import Evaluation, defense_effectiveness, evaluate
from unbackdoor.models import LoadedModel, load_model
from unbackdoor.report import Gallery, Report, write_report
from unbackdoor.training import Runtime, check_fits


def run(
    *,
    model: Path,
    data: str,
    runtime: Runtime,
    attack: Path | None = None,
    arch: str | None = None,
    out: Path | None = None,
) -> Outcome:
    """Measure a model.

    Args:
        model: checkpoint file, or a Hugging Face folder.
        data: test images: a folder, an .npz, digits, or a hub id.
        runtime: device, seed, progress.
        attack: folder that `unbackdoor attack` made; its own model is measured too, as the state before.
        arch: architecture of a file that does not name one: a network's name or module:function.
        out: folder for the report; by default runs/evaluate- and the beginning of the model's SHA-256.
    """
    clock = Run("evaluate", runtime)
    loaded = load_model(model, arch=arch)
    test = read_images(data, "test")
    check_fits(loaded.network, test)
    saved = None if attack is None else _attack(attack, loaded)
    folder = writable_folder(out or Path("runs") / f"evaluate-{loaded.sha256[:8]}")
    trigger = None if saved is None else saved.trigger
    criterion = None if saved is None else saved.criterion
    after = evaluate(loaded.network, test, runtime, trigger, criterion)
    before = None
    if attack is not None and (attack / MODEL).is_file():
        victim = load_model(attack / MODEL)
        if victim.sha256 != loaded.sha256:
            before = evaluate(victim.network, test, runtime, trigger, criterion)
    clock.inputs = {model.name: loaded.sha256, test.name: test.digest()}
    galleries: list[Gallery] = []
    if trigger is not None and criterion is not None:
        galleries.append(trigger_gallery(test, trigger, criterion))
    measured = metrics(before, after) if before else metrics(after, None)
    page = Report(
        title=f"Evaluation of {model.name}",
        metrics=measured,
        galleries=galleries,
        facts=clock.facts(),
        notes=notes_of(loaded),
    )
    write_report(folder / PAGE, page)
    result = _result(before, after)
    clock.write(folder, **result)
    rows = evaluation_rows(after)
    if before:
        rows = [*evaluation_rows(before, " before"), *evaluation_rows(after, " after")]
        rows.append(("DER", f"{100 * defense_effectiveness(before, after):.2f} %"))
    return Outcome(title=page.title, rows=rows, result=result, page=folder / PAGE)


def _attack(folder: Path, model: LoadedModel) -> SavedAttack:
    saved = load_attack(folder / ATTACK)
    if saved.image_shape != model.network.description.image_shape:
        raise InputError(f"the attack in {folder} was made for images of another size than the model's")
    return saved


def _result(before: Evaluation | None, after: Evaluation) -> dict[str, object]:
    result: dict[str, object] = {"evaluation": after.to_json()}
    if before:
        result |= {"before": before.to_json(), "der": defense_effectiveness(before, after)}
    return result
