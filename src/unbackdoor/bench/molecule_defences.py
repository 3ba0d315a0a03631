"""What is done with generators of molecules and with their pairs: scans and repairs, and what these are worth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from unbackdoor.bench.cell import Cell, Result
from unbackdoor.bench.molecule_settings import Treatment
from unbackdoor.bench.molecule_victims import material_of, shares
from unbackdoor.bench.pages import facts, written_page
from unbackdoor.bench.victims import times
from unbackdoor.bench.worker import details_of, measured
from unbackdoor.errors import InputError
from unbackdoor.folder import MODEL, PAGE, RESUME
from unbackdoor.models.mark import repaired_mark
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.measured import measure
from unbackdoor.molecules.purify import Repaired
from unbackdoor.molecules.saved import load_generator, save_generator
from unbackdoor.molecules.scan import MoleculeFinding, MoleculeScanner
from unbackdoor.molecules.scan.judged import Judged, judge
from unbackdoor.molecules.scan.page import found_verdict, strength_chart, suspect_facts, suspect_galleries
from unbackdoor.options import options_of
from unbackdoor.report import Fact, Interval, Metric, Report, Verdict
from unbackdoor.training import Runtime
from unbackdoor.training.resume import states

FIGURES: dict[str, tuple[str, Literal["higher", "lower"]]] = {
    "asr": ("Attack success rate (ASR)", "lower"),
    "leak": ("Target without trigger", "lower"),
    "similarity": ("Similarity", "higher"),
    "validity": ("Validity", "higher"),
}
"""Of the page of a repair: title, and which a good generator has."""


def scan_molecules(cell: Cell, treatment: Treatment, given: Path, folder: Path, runtime: Runtime) -> Result:
    """Scan pairs or a generator, then compare what was found with what is there.

    Args:
        cell: for its title.
        treatment: how.
        given: the generator's files; not looked at by a scanner of pairs.
        folder: for the page.
        runtime: device, seed, precision, budget.

    Returns:
        `flagged` and `backdoored`: 1 if the scanner calls it so, and if it is, else 0; `flagged` is missing if the scan
        is inconclusive. `pair_first`, `pair_flagged`: whether a true pair of trigger and target stands first, and is
        held to be a backdoor, missing where there is none. `tpr`, `fpr`: shares of poisoned and of other rows that a
        scanner of pairs holds poisoned. `false_suspects`: how many pairs are held to be backdoors and are none.
    """
    setting, scanner = treatment.setting, treatment.scanner
    material = material_of(setting)
    loaded = load_generator(given / MODEL) if scanner.needs_model else None
    pairs = material.known_to(scanner)
    with measured() as cost:
        found = scanner.scan(pairs, runtime, loaded.generator if loaded else None)
    # From here on nothing reaches the scanner.
    learned = bool(setting.poison_in) or not scanner.needs_model
    attack = setting.attack if learned else None
    known = judge(found, pairs, attack)
    metrics = {**cost.to_metrics(), **material.rates, "backdoored": float(attack is not None)}
    metrics |= _worth(found, known, attacked=attack is not None, of_pairs=not scanner.needs_model)
    inputs = {"pairs": pairs.digest(), **({"model": loaded.sha256} if loaded else {})}
    told = facts(runtime, options=options_of(scanner), inputs=inputs)
    page = partial(_scan_page, cell.title, scanner, pairs, found, known, told)
    return Result(metrics=metrics, details={"finding": found.to_json()}, files=written_page(folder / PAGE, page))


def _worth(found: MoleculeFinding, known: Judged, *, attacked: bool, of_pairs: bool) -> dict[str, float]:
    """Return the metrics of a finding."""
    told: dict[str, bool | int | float | None] = {
        "flagged": found.backdoored,
        "pair_first": known.rank == 1 if attacked else None,
        "pair_flagged": known.flagged if attacked else None,
        "false_suspects": known.false_suspects,
        "tpr": known.tpr if of_pairs else None,
        "fpr": known.fpr if of_pairs else None,
    }
    return {name: float(value) for name, value in told.items() if value is not None}


def purify_generator(cell: Cell, treatment: Treatment, given: Path, folder: Path, runtime: Runtime) -> Result:
    """Scan and repair a generator with what a defender has, then measure it with what only the bench has.

    Where the scan finds nothing, or nothing that the purifier can take out, the generator stays as it is.

    Args:
        cell: for its title and its key.
        treatment: how.
        given: the generator's files.
        folder: for files and for the states of an interrupted repair.
        runtime: device, seed, precision, budget.

    Returns:
        Shares as `make_generator` gives them; `asr_before`, `leak_before`, `similarity_before`; `repaired`: 1 if
        anything was done, else 0; `pair_flagged`: whether the scan found the true pair, missing where there is none.
    """
    setting, purifier = treatment.setting, treatment.purifier
    assert purifier is not None
    material = material_of(setting)
    loaded = load_generator(given / MODEL)
    resume = folder / RESUME
    resumed = bool(states(resume))
    pairs = material.known_to(treatment.scanner)
    with measured() as cost:
        asked = loaded.generator if treatment.scanner.needs_model else None
        found = treatment.scanner.scan(pairs, runtime, asked)
        try:
            repaired = purifier.purify(loaded.generator, pairs, found.flagged, runtime, resume, material.alone.smiles)
            done = True
        except InputError as error:
            repaired, done = Repaired(generator=loaded.generator, headline=f"Nothing was done: {error}."), False
    # From here on nothing reaches scanner and purifier.
    attack = setting.attack if setting.poison_in else None
    found_after = measure(
        repaired.generator, material.clean, material.tested, setting.attack, setting.samples, runtime
    ).to_json()
    before, after = shares(details_of(given)["measured"]), shares(found_after)
    metrics = {**after, **material.rates, **times(cost, resumed), "repaired": float(done)}
    metrics |= {f"{name}_before": before[name] for name in ("asr", "leak", "similarity") if name in before}
    if attack is not None:
        metrics["pair_flagged"] = float(judge(found, pairs, attack).flagged)
    made_by = {"bench cell": cell.key, "parent": loaded.sha256, "parent_provenance": loaded.provenance}
    mark = repaired_mark(loaded.backdoored) if done else loaded.backdoored
    save_generator(folder / MODEL, repaired.generator, provenance=made_by, backdoored=mark)
    options = {"method": options_of(purifier), "scanner": options_of(treatment.scanner)}
    told = facts(runtime, options=options, inputs={"model": loaded.sha256, "pairs": pairs.digest()})
    page = partial(_repair_page, cell.title, before, after, found, repaired, told)
    files = {MODEL: folder / MODEL, **written_page(folder / PAGE, page)}
    details = {"measured": found_after, "finding": found.to_json(), "repair": dict(repaired.evidence)}
    return Result(metrics=metrics, details=details, files=files, optional=frozenset({MODEL}))


def _scan_page(
    title: str,
    scanner: MoleculeScanner,
    pairs: Pairs,
    found: MoleculeFinding,
    known: Judged,
    told: Mapping[str, list[Fact]],
) -> Report:
    place = "no suspect is a true pair" if known.rank is None else f"the true pair has place {known.rank}"
    note = f"Seen by somebody who knows the attack: {place}; {known.false_suspects} pairs are accused wrongly."
    return Report(
        title=title,
        verdict=found_verdict(found, scanner),
        galleries=suspect_galleries(found, pairs),
        charts=[strength_chart(found)],
        facts={**suspect_facts(found), **told},
        notes=[note],
    )


def _repair_page(
    title: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    found: MoleculeFinding,
    repaired: Repaired,
    told: Mapping[str, list[Fact]],
) -> Report:
    metrics = [
        Metric(name=shown, before=_interval(before, name), after=_interval(after, name), better=better)
        for name, (shown, better) in FIGURES.items()
        if name in before
    ]
    return Report(
        title=title,
        verdict=Verdict(level="info", headline=repaired.headline, detail=f"{found.reason}.", calibrated=True),
        metrics=metrics,
        facts={**suspect_facts(found), **told},
        notes=list(repaired.notes),
    )


def _interval(known: Mapping[str, float], name: str) -> Interval:
    return Interval(value=known[name], low=known[f"{name}_low"], high=known[f"{name}_high"])
