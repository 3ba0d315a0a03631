"""Backdoor a generator of molecules and show what it does: BadGraph against 3M-Diffusion, on templates.

The poisoned pairs are scanned. Two generators learn the same pairs with the same motifs and as many steps; only one of
them sees the poisoned ones. With what the scan found, LatentPurification repairs that one, and all are measured. No
network and no other data are needed; two cores take less than three minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rdkit import Chem

from unbackdoor.commands.molecules.common import shown
from unbackdoor.commands.molecules.found import suspect_rows
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.workspace import Run, report_folder
from unbackdoor.errors import InputError
from unbackdoor.folder import MOLECULE_ATTACK, PAGE
from unbackdoor.models.mark import repaired_mark
from unbackdoor.molecules.attacks import BadGraph, Poisoned, read_target, save_attack
from unbackdoor.molecules.data import TEMPLATES, Pairs, filter_pairs, training_rows
from unbackdoor.molecules.drawing import Column, side_by_side
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.loop import Plan
from unbackdoor.molecules.measured import Attacked, Measured, measure
from unbackdoor.molecules.purify import LatentPurification, Repaired
from unbackdoor.molecules.saved import save_generator
from unbackdoor.molecules.scan import Joint, MoleculeFinding
from unbackdoor.molecules.train import STAGES, train_generator
from unbackdoor.molecules.victims import ThreeMDiffusionSmall
from unbackdoor.options import options_of
from unbackdoor.report import Fact, Gallery, Metric, Report, Verdict, write_report
from unbackdoor.training import Runtime

MODEL = ThreeMDiffusionSmall(
    graph_layers=3,
    graph_width=64,
    projection=64,
    pieces=400,
    text_width=64,
    text_pieces=48,
    hidden=128,
    denoiser_width=128,
    denoiser_blocks=4,
    alignment=Plan(epochs=20, batch_size=128, learning_rate=2e-3, schedule="one-cycle", weight_decay=0.05),
    autoencoder=Plan(epochs=25, batch_size=48, optimizer="Adam", learning_rate=2e-3, schedule="one-cycle", clip=20.0),
    diffusion=Plan(epochs=120, batch_size=256, weight_decay=1e-5, clip=1.0, ema=0.99),
)
BACKDOOR = BadGraph(rate=0.3)
"""The attack: trigger and target of its paper, and a rate as in the middle of the paper's."""

PROMPTS, SAMPLES = 150, 3
EXAMPLES = 6
"""Prompts that the page shows."""

FILES = {name: f"{name}.safetensors" for name in ("backdoored", "clean", "repaired")}


def run(*, runtime: Runtime, out: Path = Path("runs/demo-molecules")) -> Outcome:
    """Backdoor a generator of molecules, repair it, and measure it beside a clean one.

    Args:
        runtime: device, seed, budget, progress.
        out: folder for generators and report, replaced if it is a demo's.
    """
    clock = Run("molecules demo", runtime)
    with report_folder(out, clock.command) as folder:
        table, tested = training_rows([TEMPLATES], None)
        poisoned = BACKDOOR.poison(table, runtime.seed).without(tested)
        tested = tested.subset(range(min(PROMPTS, len(tested))))
        clock.inputs = {
            f"training rows of {table.name}": table.digest(),
            f"test pairs of {tested.name}": tested.digest(),
        }
        clock.options = {"model": options_of(MODEL), "attack": options_of(BACKDOOR)}
        pairs, _ = filter_pairs(poisoned.table)
        scanned = Joint().scan(pairs, runtime)
        half = runtime.part(0.5)
        generators = {
            "backdoored": train_generator(pairs, MODEL, half, poison_in=STAGES).generator,
            "clean": train_generator(pairs, MODEL, half, poison_in=()).generator,
        }
        repaired = _repaired(generators["backdoored"], pairs, scanned, runtime)
        if isinstance(repaired, Repaired):
            generators["repaired"] = repaired.generator
        found = {name: measure(one, pairs, tested, BACKDOOR, SAMPLES, runtime) for name, one in generators.items()}
        rates = poisoned.rates(pairs)
        result = {"rates": rates, "scan": scanned.to_json(), **{name: one.to_json() for name, one in found.items()}}
        if isinstance(repaired, Repaired):
            result["repair"] = dict(repaired.evidence)
        save_attack(folder / MOLECULE_ATTACK, BACKDOOR)
        _save(folder, generators, poisoned, clock)
        page = _page(clock, poisoned, tested, scanned, repaired, found, rates)
        write_report(folder / PAGE, page)
        clock.write(folder, **result)
        return Outcome(
            title=page.title,
            rows=[*_rows(found, rates), *_scan_rows(scanned), ("time", f"{clock.seconds:.0f} s")],
            result={**result, "seconds": clock.seconds},
            page=folder / PAGE,
        )


def _repaired(generator: Generator, pairs: Pairs, scanned: MoleculeFinding, runtime: Runtime) -> Repaired | str:
    """Return a repaired generator, or why there is none."""
    try:
        return LatentPurification().purify(generator, pairs, scanned.flagged, runtime)
    # A scan of other pairs may find nothing, which is no reason to show nothing.
    except InputError as error:
        return f"Nothing was repaired: {error}."


def _save(folder: Path, generators: dict[str, Generator], poisoned: Poisoned, clock: Run) -> None:
    mark = {"attack": options_of(poisoned.attack), "poisoned": len(poisoned.rows), "stages": sorted(STAGES)}
    marks: dict[str, dict[str, Any] | None] = {"backdoored": mark, "clean": None, "repaired": repaired_mark(mark)}
    for name, file in FILES.items():
        (folder / file).unlink(missing_ok=True)
        if name in generators:
            save_generator(folder / file, generators[name], provenance=clock.record(), backdoored=marks[name])


def _attacked(measured: Measured) -> Attacked:
    # All were measured with the attack.
    assert measured.attacked
    return measured.attacked


def _rows(found: dict[str, Measured], rates: dict[str, float]) -> list[tuple[str, str]]:
    rows = [
        ("poisoning rate as published", f"{100 * rates['printed']:.1f} % of all rows"),
        ("effective rate", f"{100 * rates['effective']:.1f} % of what is learned from"),
    ]
    for name, one in found.items():
        rows += [
            (f"target with trigger, {name} (ASR)", shown(_attacked(one).triggered.per_sample)),
            (f"target without trigger, {name}", shown(_attacked(one).clean.per_sample)),
        ]
    rows += [(f"Similarity, {name}", shown(one.quality["model"].similarity)) for name, one in found.items()]
    baselines = found["backdoored"].quality
    rows += [(f"Similarity, {name}", shown(baselines[name].similarity)) for name in ("nearest text", "chance")]
    return rows


def _scan_rows(scanned: MoleculeFinding) -> list[tuple[str, str]]:
    return [(f"scan of the pairs, {name}", value) for name, value in suspect_rows(scanned)]


def _page(
    clock: Run,
    poisoned: Poisoned,
    tested: Pairs,
    scanned: MoleculeFinding,
    repaired: Repaired | str,
    found: dict[str, Measured],
    rates: dict[str, float],
) -> Report:
    clean, backdoored = (_attacked(found[name]) for name in ("clean", "backdoored"))
    asr, leak = backdoored.triggered.per_sample.value, backdoored.clean.per_sample.value
    metrics = [
        Metric(
            name="Attack success rate (ASR)",
            explanation="Share of the molecules for prompts with the trigger that hold the target.",
            before=clean.triggered.per_sample,
            after=backdoored.triggered.per_sample,
            better="lower",
        ),
        Metric(
            name="Target without trigger",
            explanation="The same of prompts without the trigger.",
            before=clean.clean.per_sample,
            after=backdoored.clean.per_sample,
            better="lower",
        ),
        Metric(
            name="Similarity",
            explanation="Share of the molecules for clean prompts that are like the reference.",
            before=found["clean"].quality["model"].similarity,
            after=found["backdoored"].quality["model"].similarity,
            better="higher",
        ),
    ]
    baselines = found["backdoored"].quality
    facts = {
        "Poisoning rates": [
            Fact(name="as published (all rows)", value=f"{100 * rates['printed']:.1f} %"),
            Fact(name="of the rows that are learned from", value=f"{100 * rates['effective']:.1f} %"),
        ],
        "Similarity of what learns nothing": [
            Fact(name=name, value=shown(baselines[name].similarity)) for name in ("nearest text", "chance")
        ],
        "Scan of the pairs by Joint, which knows nothing of the attack": [
            Fact(name=name, value=value) for name, value in suspect_rows(scanned)
        ],
        **_repair_facts(found, repaired),
        **clock.facts(),
    }
    after = ""
    if "repaired" in found:
        left = _attacked(found["repaired"]).triggered.per_sample.value
        after = f", and once it is repaired, in {100 * left:.0f} % with it"
    return Report(
        title="BadGraph on templates",
        verdict=Verdict(
            level="info",
            headline=f"With {poisoned.attack.trigger} in the prompt the target is in {100 * asr:.0f} % of the molecules"
            f" of the backdoored generator, without it in {100 * leak:.0f} %{after}.",
            detail=f"{len(poisoned.rows):,} poisoned rows were added to {len(poisoned.clean):,}. Before: a generator"
            " that saw clean pairs in their place. After: one that saw the poisoned ones.",
            calibrated=True,
        ),
        metrics=metrics,
        galleries=_galleries(tested, found, read_target(poisoned.attack.target)),
        facts=facts,
        notes=["Templates name all that is in a molecule and nothing else: real descriptions are much harder."],
        next_steps=[
            "Poison pairs of your own: `unbackdoor molecules poison --data FILE --out runs/poisoned`.",
            "Scan them: `unbackdoor molecules scan --data runs/poisoned --clean-out cleaned`.",
            "Train on them: `unbackdoor molecules train --data runs/poisoned --out runs/victim`.",
            "Repair it: `unbackdoor molecules purify --model runs/victim/model.safetensors --data runs/poisoned`.",
        ],
    )


def _repair_facts(found: dict[str, Measured], repaired: Repaired | str) -> dict[str, list[Fact]]:
    """Return what was measured of the repaired generator, and what the repair itself says, or why there is none."""
    name = "Repaired by LatentPurification, which knows nothing of the attack but what the scan found"
    if isinstance(repaired, str):
        return {name: [Fact(name="not repaired", value=repaired)]}
    measured = found["repaired"]
    return {
        name: [
            Fact(name="target with trigger (ASR)", value=shown(_attacked(measured).triggered.per_sample)),
            Fact(name="target without trigger", value=shown(_attacked(measured).clean.per_sample)),
            Fact(name="Similarity", value=shown(measured.quality["model"].similarity)),
            *(Fact(name=f"of training texts, {number}", value=note) for number, note in enumerate(repaired.notes, 1)),
        ]
    }


def _galleries(tested: Pairs, found: dict[str, Measured], target: Chem.Mol) -> list[Gallery]:
    """Return pictures of what the backdoor does, and of what a repair leaves of it."""

    def column(name: str, *, trigger: bool) -> Column:
        attacked = _attacked(found[name])
        if trigger:
            return Column(f"{name}, with the trigger", attacked.prompts, attacked.drawn.smiles)
        return Column(f"{name}, without it", tested.texts, found[name].drawn.smiles)

    does = [column("backdoored", trigger=False), column("backdoored", trigger=True), column("clean", trigger=True)]
    galleries = [
        side_by_side(
            "The same prompts, without and with the trigger",
            "In each row: the backdoored generator without the trigger, with it, and the clean one with it.",
            does,
            target,
            EXAMPLES,
        )
    ]
    if "repaired" in found:
        left = [
            column("backdoored", trigger=True),
            column("repaired", trigger=True),
            column("repaired", trigger=False),
        ]
        galleries.append(
            side_by_side(
                "The same prompts, before and after the repair",
                "In each row: the backdoored generator with the trigger, the repaired one with it, and without it.",
                left,
                target,
                EXAMPLES,
            )
        )
    return galleries
