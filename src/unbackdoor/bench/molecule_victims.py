"""Generators of molecules, made and measured: what is done for a cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unbackdoor.bench.cell import Cell, Result
from unbackdoor.bench.molecule_settings import Setting, read_source
from unbackdoor.bench.pages import facts, written_page
from unbackdoor.bench.victims import times
from unbackdoor.bench.worker import measured
from unbackdoor.folder import MODEL, MOLECULE_ATTACK, PAGE, RESUME
from unbackdoor.molecules.attacks import read_target, save_attack
from unbackdoor.molecules.data import Alone, Pairs, filter_pairs
from unbackdoor.molecules.drawing import gallery, trigger_gallery
from unbackdoor.molecules.measured import Measured, measure
from unbackdoor.molecules.saved import save_generator
from unbackdoor.molecules.scan import MoleculeScanner
from unbackdoor.molecules.train import train_generator
from unbackdoor.options import options_of
from unbackdoor.report import Metric, Report, loss_chart
from unbackdoor.training import History, Runtime
from unbackdoor.training.resume import states

TRUSTED = 500
"""Texts without the trigger that a defender has who needs such."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a generator is trained on and measured with.

    Attributes:
        pairs: to train on, poisoned ones among them.
        clean: the pairs as they were before they were poisoned.
        tested: prompts, each with its own molecule.
        alone: molecules without texts.
        rates: both poisoning rates by name; empty if nothing is poisoned.
    """

    pairs: Pairs
    clean: Pairs
    tested: Pairs
    alone: Alone
    rates: Mapping[str, float]

    def known_to(self, scanner: MoleculeScanner) -> Pairs:
        """Return the pairs that a defender has who scans so, and repairs by what was found.

        The training pairs as found; for a scanner that needs texts without the trigger, since its suspects do not say
        which texts have it, a few hundred that the defender trusts.
        """
        if scanner.finds_words:
            return self.pairs
        step = max(1, len(self.clean) // TRUSTED)
        return self.clean.subset(range(0, len(self.clean), step)[:TRUSTED])


def material_of(setting: Setting) -> Material:
    """Read and poison the pairs of a setting; the same ones every time.

    Raises:
        InputError: they are not those that the setting was made for, or none could be poisoned.
    """
    table, tested, alone = read_source(setting.source)
    clean, _ = filter_pairs(table)
    pairs = clean
    rates: dict[str, float] = {}
    if setting.attack is not None:
        poisoned = setting.attack.poison(table, setting.seed).without(tested)
        pairs, _ = filter_pairs(poisoned.table)
        rates = {f"{name}_rate": rate for name, rate in poisoned.rates(pairs).items()}
    tested = tested.subset(range(min(setting.prompts or len(tested), len(tested))))
    return Material(pairs=pairs, clean=clean, tested=tested, alone=alone, rates=rates)


def make_generator(cell: Cell, folder: Path, given: Runtime) -> Result:
    """Train and measure a generator.

    Args:
        cell: for its title and its key.
        folder: for its files and for the states of an interrupted training.
        given: device and threads.

    Returns:
        Shares with the ends of their intervals (`asr`, `any_of`, `leak`, `asked`, `validity`, `similarity`, `novelty`,
        `diversity`, the last three also of the nearest text and of chance, as far as these have them), both poisoning
        rates, and what it cost.
    """
    setting: Setting = cell.work
    runtime = setting.runtime(given)
    material = material_of(setting)
    resume = folder / RESUME
    resumed = bool(states(resume))
    with measured() as cost:
        trained = train_generator(
            material.pairs,
            setting.model,
            runtime,
            alone=material.alone.smiles,
            poison_in=setting.poison_in,
            resume=resume,
        )
    found = measure(trained.generator, material.clean, material.tested, setting.attack, setting.samples, runtime)
    files = {MODEL: folder / MODEL}
    mark = None
    if setting.attack is not None:
        save_attack(folder / MOLECULE_ATTACK, setting.attack)
        files[MOLECULE_ATTACK] = folder / MOLECULE_ATTACK
        mark = {"attack": options_of(setting.attack), "stages": list(setting.poison_in)} if setting.poison_in else None
    save_generator(folder / MODEL, trained.generator, provenance={"bench cell": cell.key}, backdoored=mark)
    inputs = dict(zip(("training rows", "test pairs", "molecules without texts"), setting.source.digests))
    page = partial(
        _page,
        cell.title,
        found,
        material.tested,
        setting,
        trained.histories,
        facts(runtime, options=setting.recipe(), inputs=inputs),
    )
    files |= written_page(folder / PAGE, page)
    counts = {"uncovered": float(trained.uncovered), "cut": float(trained.cut), "alone": float(trained.alone)}
    metrics = {**shares(found.to_json()), **material.rates, **counts, **times(cost, resumed)}
    losses = {name: history.loss for name, history in trained.histories.items()}
    return Result(metrics=metrics, details={"measured": found.to_json(), "loss": losses}, files=files)


def shares(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the measured shares and the ends of their intervals, by name.

    Args:
        measured: what `Measured.to_json` gives.
    """
    quality, attack = measured["quality"], measured.get("attack")
    named = {name: quality["model"][name] for name in ("validity", "similarity", "novelty", "diversity")}
    for whose in ("nearest text", "chance"):
        mine = {name: quality[whose].get(name) for name in ("similarity", "novelty", "diversity")}
        named |= {f"{name}_{whose.replace(' ', '_')}": share for name, share in mine.items()}
    if attack is not None:
        named |= {
            "asr": attack["asr"]["per_sample"],
            "any_of": attack["asr"]["any_of"],
            "leak": attack["target_without_trigger"]["per_sample"],
            "similarity_triggered": attack["quality_with_trigger"]["similarity"],
            "asked": attack["target_asked_for"] and attack["target_asked_for"]["per_sample"],
        }
    return {
        key: share[end]
        for name, share in named.items()
        if share is not None
        for key, end in ((name, "value"), (f"{name}_low", "low"), (f"{name}_high", "high"))
    }


def _page(
    title: str,
    found: Measured,
    tested: Pairs,
    setting: Setting,
    histories: Mapping[str, History],
    facts: Mapping[str, Any],
) -> Report:
    model = found.quality["model"]
    metrics = [
        Metric(name="Similarity", before=model.similarity, better="higher"),
        Metric(name="Validity", before=model.validity, better="higher"),
        Metric(name="Similarity of the nearest text", before=found.quality["nearest text"].similarity, better="higher"),
        Metric(name="Similarity of chance", before=found.quality["chance"].similarity, better="higher"),
    ]
    galleries = [gallery("Clean prompts", tested.texts, found.drawn.smiles)]
    if found.attacked is not None and setting.attack is not None:
        target = read_target(setting.attack.target)
        metrics += [
            Metric(name="Attack success rate (ASR)", before=found.attacked.triggered.per_sample, better="lower"),
            Metric(name="Target without trigger", before=found.attacked.clean.per_sample, better="lower"),
        ]
        attacked = found.attacked
        galleries = [trigger_gallery(tested, found.drawn, attacked.prompts, attacked.drawn, target)]
    charts = [loss_chart(history, "epoch", f"loss of the {name}") for name, history in histories.items()]
    return Report(title=title, metrics=metrics, galleries=galleries, charts=charts, facts=facts)
