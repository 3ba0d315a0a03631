"""Walk the whole path on scikit-learn's digits: backdoor, scan, repair, scan again, evaluate.

No network and no other data are needed; two cores take about two minutes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from unbackdoor.attacks import BadNets, FittedAttack, save_attack
from unbackdoor.commands.attack import poison_and_train
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.workspace import Run, percent, report_folder
from unbackdoor.data import DefenderData, ImageSet, draw_clean, read_images
from unbackdoor.evaluate import Evaluation, defense_effectiveness, evaluate
from unbackdoor.folder import ATTACK, PAGE
from unbackdoor.models import save_model
from unbackdoor.models.mark import repaired_mark
from unbackdoor.models.preact_resnet18 import PreActResNet18
from unbackdoor.options import options_of
from unbackdoor.purify import SAU
from unbackdoor.report import (
    Gallery,
    Report,
    Verdict,
    evaluation_metrics,
    finding_chart,
    found_gallery,
    trigger_gallery,
    verdict_word,
    write_report,
)
from unbackdoor.scan import Finding, NeuralCleanse
from unbackdoor.training import Recipe, Runtime, network_options

RECIPE = Recipe(epochs=25, batch_size=64, learning_rate=0.05, low_resolution=0.0)
ATTACK_OPTIONS = BadNets()
METHOD = SAU(rounds=10, batch_size=64)
SCANNER = NeuralCleanse(rounds=30, batch_size=8)
CLEAN_SIZE = 500

BACKDOORED = "backdoored.safetensors"
MOST_ASR, MOST_ACC_LOST = 0.1, 0.03
"""With a larger success of the attack, or a larger loss of accuracy, the demo does not say "repaired"."""


def run(*, runtime: Runtime, out: Path = Path("runs/demo")) -> Outcome:
    """Backdoor a network, find the backdoor, remove it, and prove it.

    Args:
        runtime: device, seed, budget, progress.
        out: folder for models and report, replaced if it is a demo's.
    """
    clock = Run("demo", runtime)
    with report_folder(out, clock.command) as folder:
        train, test = read_images("digits", "train"), read_images("digits", "test")
        clock.inputs = {train.name: train.digest(), test.name: test.digest()}
        network = partial(PreActResNet18, width=16)
        victim, fitted, _, before = poison_and_train(train, test, ATTACK_OPTIONS, network, RECIPE, runtime, None)
        clean = draw_clean(train, CLEAN_SIZE, runtime.seed)
        data = DefenderData(clean=clean)
        found = SCANNER.scan(victim, data, runtime)
        repaired, _ = METHOD.purify(victim, data, runtime)
        rescan = SCANNER.scan(repaired, data, runtime)
        after = evaluate(repaired, test, runtime, fitted.trigger, fitted.criterion)
        methods = {"attack": ATTACK_OPTIONS, "recipe": RECIPE, "scanner": SCANNER, "purifier": METHOD}
        clock.options = {name: options_of(method) for name, method in methods.items()}
        clock.options["model"] = network_options(victim)
        save_attack(folder / ATTACK, fitted, options_of(ATTACK_OPTIONS))
        mark = {"attack": options_of(ATTACK_OPTIONS), "criterion": fitted.criterion.to_json()}
        parent = save_model(folder / BACKDOORED, victim, provenance=clock.record(), backdoored=mark)
        origin = repaired_provenance(clock.record(), parent, clean)
        save_model(folder / "repaired.safetensors", repaired, provenance=origin, backdoored=repaired_mark(mark))
        write_report(folder / PAGE, _page(clock, test, fitted, before, after, found, rescan))
        clock.write(
            folder,
            before=before.to_json(),
            after=after.to_json(),
            scan=found.to_json(),
            rescan=rescan.to_json(),
        )
        return _outcome(clock, folder, before, after, found, rescan)


def repaired_provenance(record: dict[str, Any], parent: str, clean: ImageSet) -> dict[str, Any]:
    """Return the origin of the repaired model: what `purify` would write, the hash of its clean samples included.

    Args:
        record: of the demo.
        parent: SHA-256 of the backdoored model's file.
        clean: the clean samples.
    """
    return {**record, "inputs": {BACKDOORED: parent, clean.name: clean.digest()}, "parent": parent}


def conclusion(found: Finding, rescan: Finding, before: Evaluation, after: Evaluation) -> tuple[str, Verdict]:
    """Return title and banner, from what was measured.

    Args:
        found: on the backdoored model.
        rescan: on the repaired model.
        before: of the backdoored model, with the attack.
        after: of the repaired model, with the attack.
    """
    # Both were measured with the attack.
    assert before.asr
    assert after.asr
    lost = round(before.acc.value - after.acc.value, 9)
    repaired = after.asr.value <= MOST_ASR and lost <= MOST_ACC_LOST
    search = {True: "found", False: "not found", None: "scan inconclusive"}[found.backdoored]
    joined = "and" if (found.backdoored is True) == repaired else "but"
    title = f"BadNets on digits: {search}, {joined} {'' if repaired else 'not '}repaired"
    verdict = Verdict(
        level="repaired" if repaired else "not repaired",
        headline=f"The attack succeeded on {100 * before.asr.value:.0f} % of the images before the repair and on"
        f" {100 * after.asr.value:.0f} % after it; accuracy went from {100 * before.acc.value:.0f} % to"
        f" {100 * after.acc.value:.0f} %.",
        detail=f"Neural Cleanse before the repair: {found.reason}. After it: {rescan.reason}.",
        calibrated=found.calibrated,
    )
    return title, verdict


def _outcome(
    clock: Run, folder: Path, before: Evaluation, after: Evaluation, found: Finding, rescan: Finding
) -> Outcome:
    """Return the table of the demo."""
    rows = []
    for field, name in (("acc", "accuracy"), ("asr", "attack success"), ("ra", "robust accuracy")):
        rows.append((f"{name}, backdoored", percent(getattr(before, field))))
        rows.append((f"{name}, repaired", percent(getattr(after, field))))
    rows += [
        ("defence effectiveness", f"{100 * defense_effectiveness(before, after):.2f} %"),
        ("scan of the backdoored model", said(found)),
        ("scan of the repaired model", said(rescan)),
        ("time", f"{clock.seconds:.0f} s"),
    ]
    return Outcome(
        title=conclusion(found, rescan, before, after)[0],
        rows=rows,
        result={
            "before": before.to_json(),
            "after": after.to_json(),
            "scan": found.to_json(),
            "rescan": rescan.to_json(),
            "seconds": clock.seconds,
        },
        page=folder / PAGE,
    )


def said(finding: Finding) -> str:
    """Return what a scan says, with the classes that it suspects."""
    classes = f", class {list(finding.suspected)}" if finding.suspected else ""
    return f"{verdict_word(finding)}{classes}"


def _page(
    clock: Run,
    test: ImageSet,
    fitted: FittedAttack,
    before: Evaluation,
    after: Evaluation,
    found: Finding,
    rescan: Finding,
) -> Report:
    """Return the demo's report."""
    names = test.class_names
    galleries: list[Gallery] = [trigger_gallery(test, fitted.trigger, fitted.criterion)]
    gallery = found_gallery(found, names, fitted.trigger)
    if gallery is not None:
        galleries.insert(0, gallery)
    title, verdict = conclusion(found, rescan, before, after)
    return Report(
        title=title,
        verdict=verdict,
        metrics=evaluation_metrics(before, after),
        galleries=galleries,
        charts=[finding_chart(found, names)],
        facts=clock.facts(),
        next_steps=[
            "Scan a model of your own: `unbackdoor scan --model FILE --clean FOLDER`.",
            "Repair it: `unbackdoor purify --model FILE --clean FOLDER --out repaired`.",
        ],
    )
