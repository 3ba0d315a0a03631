"""Measure accuracy and, with an attack, attack success and robust accuracy of a model on test images."""

from __future__ import annotations

from pathlib import Path

from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.reconstructed import reconstruction_facts, reconstruction_of, reconstruction_rows
from unbackdoor.commands.workspace import Run, evaluation_rows, open_attack, open_beside, open_model, report_folder
from unbackdoor.evaluate import Evaluation, defense_effectiveness, evaluate
from unbackdoor.folder import MODEL, PAGE
from unbackdoor.models import LoadedModel
from unbackdoor.models.mark import notes_of
from unbackdoor.report import Gallery, Report, evaluation_metrics, trigger_gallery, write_report
from unbackdoor.secure import Decoder
from unbackdoor.secure.saved import load_decoder
from unbackdoor.training import Runtime, check_fits, network_options


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
        attack: folder that `unbackdoor attack` made, or an attack's file; the model in the folder is measured too, as
            the state before.
        arch: architecture of a file that does not name one: a network's name or module:function.
        out: folder for the report, replaced if it is an evaluation's; by default runs/evaluate- and the beginning of
            the model's SHA-256.
    """
    clock = Run("evaluate", runtime)
    loaded, test = open_model(model, arch, data, "test")
    clock.inputs = {model.name: loaded.sha256, test.name: test.digest()}
    clock.options = {"model": network_options(loaded.network)}
    saved = victim = trigger = criterion = None
    if attack is not None:
        saved = open_attack(attack, loaded)
        trigger, criterion = saved.trigger, saved.criterion
        clock.inputs[f"attack {attack.name}"] = saved.sha256
        clock.options["attack"] = saved.options
        if (attack / MODEL).is_file():
            victim = open_beside(attack / MODEL, arch)
            check_fits(victim.network, test)
            clock.inputs[f"{attack.name}/{MODEL}"] = victim.sha256
    with report_folder(out or Path("runs") / f"evaluate-{loaded.sha256[:8]}", clock.command) as folder:
        after = evaluate(loaded.network, test, runtime, trigger, criterion)
        decoder = _decoder(model, loaded)
        rebuilt = reconstruction_of(loaded.network, decoder, test, runtime, trigger, criterion)
        before = None
        if victim is not None and victim.sha256 != loaded.sha256:
            before = evaluate(victim.network, test, runtime, trigger, criterion)
        galleries: list[Gallery] = []
        if trigger is not None and criterion is not None:
            galleries.append(trigger_gallery(test, trigger, criterion))
        measured = evaluation_metrics(before, after) if before else evaluation_metrics(after, None)
        page = Report(
            title=f"Evaluation of {model.name}",
            metrics=measured,
            galleries=galleries,
            facts={**reconstruction_facts(rebuilt), **clock.facts()},
            notes=notes_of(loaded),
        )
        write_report(folder / PAGE, page)
        result = _result(before, after)
        if rebuilt is not None:
            result["reconstruction"] = rebuilt.to_json()
        clock.write(folder, **result)
        rows = evaluation_rows(after)
        if before:
            rows = [*evaluation_rows(before, " before"), *evaluation_rows(after, " after")]
            rows.append(("DER", f"{100 * defense_effectiveness(before, after):.2f} %"))
        rows += reconstruction_rows(rebuilt)
        return Outcome(title=page.title, rows=rows, result=result, page=folder / PAGE)


def _decoder(model: Path, loaded: LoadedModel) -> Decoder | None:
    """Return the decoder that a secure training left beside the model, if there is one."""
    path = model.parent / "decoder.safetensors"
    return load_decoder(path, loaded.network) if model.is_file() and path.is_file() else None


def _result(before: Evaluation | None, after: Evaluation) -> dict[str, object]:
    result: dict[str, object] = {"evaluation": after.to_json()}
    if before:
        result |= {"before": before.to_json(), "der": defense_effectiveness(before, after)}
    return result
