"""Making calibration tables: the detectors look at every model of a zoo, and what they say is weighed and ranked.

The numbers of each detector are first made comparable: from each, the median over the clean models of the part
"weights" is taken (of the class that has most of it), and it is divided by the scaled median absolute deviation. Both
are those of one network: what is usual for one need not be for another. Then, over the models of all networks, weights
w >= 0 and a constant b minimise

    mean over backdoored models of log(1 + exp(-z)) + mean over clean models of log(1 + exp(z)) + PENALTY ||w||^2,
    z = b + sum of w asinh(number),

where a backdoored model has the numbers of its target class, and a clean one those of the class that scores highest;
which class that is depends on the weights, so both steps are repeated until no choice changes. The clean models of the
part "ranks" then only lend their scores, each network's to a table of its own, and those of the part "held-out" judge
the result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from unbackdoor.bench.zoo import Entry, Part, append, claimed, entry_of, kept_back, rows_of
from unbackdoor.data import DefenderData, ImageSet, draw_clean
from unbackdoor.errors import InputError
from unbackdoor.models import load_model
from unbackdoor.options import options_of, revision_of
from unbackdoor.scan import Finding, Scanner
from unbackdoor.scan.calibration import ANOMALY, HeldOut, Measure, Table, class_scores, of_classes, threshold_of
from unbackdoor.scan.outliers import GAUSSIAN
from unbackdoor.training import Runtime, Silent, UserNetwork, architecture_of

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

Measures = Mapping[str, Sequence[Measure]]
"""What is weighed, by the network of the model."""
Looked = tuple[Mapping[str, Any], list[dict[str, Any]]]
"""A row of the zoo's index, and those of the scans of its model."""

SCANS = "scans.jsonl"
"""Name of the file with what detectors said, in a zoo's folder."""
PENALTY = 0.05
"""Of the squared weights; set once, before any model was judged."""
REPEATS = 50
"""Of the regression, at most."""
LEAST_MODELS = 4
"""Clean models of each network, and backdoored ones of all, from which weights are learned, at least."""
RATE = 0.05
"""Of false alarms, at which verdicts are judged, if there are clean models enough."""
LEAST_RANKS = 9
"""Clean models of each network to rank among, at least: they allow a rate of 10 %."""
CLEAN_SIZES = (50, 250)
"""Clean images that the detectors get, a table for each: who has few uses one, and who has many the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scanned:
    """A model of a zoo, and what the detectors say of it.

    Attributes:
        key: of the model.
        network: its name.
        part: what it is for; see `Entry.part`.
        attack: name, or None.
        backdoored: whether it is.
        target: the one class that the attacker wants, or None.
        findings: by the detectors' names.
        seconds: all detectors together.
    """

    key: str
    network: str
    part: Part | None
    attack: str | None
    backdoored: bool
    target: int | None
    findings: Mapping[str, Finding]
    seconds: float

    @classmethod
    def of(cls, row: Mapping[str, Any], scans: Sequence[Mapping[str, Any]]) -> Scanned:
        """Return what a row of the index and the rows of its scans tell."""
        findings = {
            scan["detector"]: Finding(
                backdoored=scan["flagged"],
                suspected=tuple(scan["suspected"]),
                calibrated=False,
                anomaly=torch.tensor(scan["anomaly"]),
                threshold=scan["threshold"],
                statistics=scan["statistics"],
            )
            for scan in scans
            if "refused" not in scan
        }
        return cls(
            key=row["key"],
            network=row["network"],
            part=entry_of(row).part,
            attack=row["attack"],
            backdoored=row["backdoored"],
            target=row["target"],
            findings=findings,
            seconds=sum(scan.get("seconds", 0.0) for scan in scans),
        )


def scan_zoo(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    networks: Sequence[partial[Any]],
    train: ImageSet,
    detectors: Sequence[Scanner],
    clean_size: int,
    runtime: Runtime,
) -> list[Looked]:
    """Let the detectors look at the models of a zoo, each with clean images of those that were kept back from it.

    What was done before is not done again; several processes share the work.

    Args:
        out: the zoo's folder.
        rows: of its index; those without a model, or with an attack that failed, are left out.
        networks: that the zoo was made with; code of the user's runs for these alone, whatever the rows say.
        train: the zoo's training images.
        detectors: which.
        clean_size: clean images that they get.
        runtime: device and precision; seeds are the models' own.

    Returns:
        Each model's row with those of its scans; without the models that another process is at.
    """
    usable = usable_of(rows)
    code = {architecture_of(network) for network in networks if isinstance(network, UserNetwork)}
    with runtime.progress.bar("scans", len(usable)) as advance:
        for row in usable:
            todo = {scan_key(row, detector, clean_size): detector for detector in detectors}
            with claimed(out, f"scan-{row['key']}-{clean_size}") as mine:
                done = {scan["key"] for scan in rows_of(out / SCANS)} if mine else set(todo)
                for key, detector in todo.items():
                    if key not in done:
                        append(out / SCANS, _scan(out, row, key, code, train, detector, clean_size, runtime))
            advance()
    scans = {scan["key"]: scan for scan in rows_of(out / SCANS)}
    wanted = [(row, [scans.get(scan_key(row, detector, clean_size)) for detector in detectors]) for row in usable]
    return [(row, [one for one in said if one]) for row, said in wanted if all(said)]


def usable_of(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows whose models have a part: neither refused by their attack, nor with one that failed."""
    return [row for row in rows if row.get("backdoored") is not None and entry_of(row).part is not None]


def sizes_for(train: ImageSet) -> tuple[int, ...]:
    """Return the numbers of clean images that detectors get of a zoo on these images, ascending."""
    kept = len(kept_back(train, 0)[1])
    return tuple(sorted({min(size, kept) for size in CLEAN_SIZES}))


def scan_key(row: Mapping[str, Any], detector: Scanner, clean_size: int) -> str:
    """Return what tells a scan of a model from others: of another detector, revision, or number of clean images."""
    revision = "".join(f"{name} {number} " for name, number in revision_of(detector).items())
    return f"{row['sha256']} {clean_size} {revision}{options_of(detector)}"


def _scan(
    out: Path,
    row: Mapping[str, Any],
    key: str,
    code: set[str],
    train: ImageSet,
    detector: Scanner,
    clean_size: int,
    runtime: Runtime,
) -> dict[str, Any]:
    loaded = load_model(out / row["file"], arch=row["network"] if row["network"] in code else None)
    if loaded.sha256 != row["sha256"]:
        raise InputError(f"{out / row['file']} is another file than the one in the index; make the zoo again")
    quiet = replace(runtime, seed=row["seed"], budget=None, progress=Silent())
    clean = draw_clean(kept_back(train, row["seed"])[1], clean_size, row["seed"])
    start = time.perf_counter()
    scan = {"key": key, "model": row["key"], "detector": type(detector).__name__, "clean_size": clean_size}
    try:
        finding = detector.scan(loaded.network, DefenderData(clean=clean), quiet)
    except InputError as error:
        return {**scan, "refused": str(error)}
    return {
        **scan,
        "anomaly": finding.anomaly.tolist(),
        "statistics": dict(finding.statistics),
        "threshold": finding.threshold,
        "flagged": finding.backdoored,
        "suspected": list(finding.suspected),
        "seconds": round(time.perf_counter() - start, 2),
    }


def measures_of(models: Sequence[Scanned]) -> dict[str, tuple[Measure, ...]]:
    """Return what is weighed, with the weights, by network; see the module's text.

    Args:
        models: those of the part "weights" count.

    Raises:
        InputError: too few of them.
    """
    learned = [one for one in models if one.part == "weights"]
    networks = sorted({one.network for one in models})
    clean = {network: [one for one in learned if one.network == network and not one.backdoored] for network in networks}
    _check_learned(min(map(len, clean.values())), sum(one.backdoored for one in learned))
    numbers = sorted({pair for some in clean.values() for one in some for pair in _numbers(one)})
    usual = {
        network: {pair: _measure(*pair, some) for pair in numbers if any(pair in _numbers(one) for one in some)}
        for network, some in clean.items()
    }
    features = {one.key: _features(one, usual[one.network], numbers) for one in learned}
    weights = np.ones(len(numbers))
    chosen: list[int] = []
    for _ in range(REPEATS):
        before, chosen = chosen, [_row(one, features[one.key], weights) for one in learned]
        if chosen == before:
            break
        rows = np.stack([features[one.key][c].numpy() for one, c in zip(learned, chosen)])
        weights = logistic(rows, np.array([one.backdoored for one in learned]))
    weight = dict(zip(numbers, weights.tolist()))
    return {
        network: tuple(replace(measure, weight=weight[pair]) for pair, measure in measures.items())
        for network, measures in usual.items()
    }


def _check_learned(fewest: int, backdoored: int) -> None:
    if min(fewest, backdoored) < LEAST_MODELS:
        raise InputError(
            f"weights are learned from {LEAST_MODELS} clean models of each network and as many backdoored ones or more,"
            f" found {fewest} and {backdoored}; make a larger zoo"
        )


def _numbers(one: Scanned) -> list[tuple[str, str]]:
    return [(name, number) for name, finding in one.findings.items() for number in (ANOMALY, *finding.statistics)]


def _measure(detector: str, number: str, clean: Sequence[Scanned]) -> Measure:
    """Return the centre and the scale of a number over clean models."""
    values = []
    for one in clean:
        finding = one.findings.get(detector)
        if finding is not None:
            values.append(float(finding.anomaly.max()) if number == ANOMALY else finding.statistics.get(number, np.nan))
    known = np.array([value for value in values if np.isfinite(value)])
    center = float(np.median(known))
    spread = GAUSSIAN * float(np.median(np.abs(known - center)))
    # A number that clean models agree on must not decide by a hair.
    scale = max(spread, 1e-3 * abs(center), 1e-6)
    return Measure(detector=detector, number=number, center=center, scale=scale, weight=1.0)


def _features(
    one: Scanned, usual: Mapping[tuple[str, str], Measure], numbers: Sequence[tuple[str, str]]
) -> Float[Tensor, "k d"]:
    """Return the comparable numbers of each class, a column a number; zeros where the network does not have it."""
    columns = [class_scores([usual[pair]] if pair in usual else [], one.findings) for pair in numbers]
    return torch.stack(columns, 1)


def _row(one: Scanned, features: Float[Tensor, "k d"], weights: FloatArray) -> int:
    """Return the class whose numbers stand for a model: the target, or where that is none the highest score."""
    if one.backdoored and one.target is not None:
        return one.target
    return int((features.numpy() @ weights).argmax())


def logistic(rows: FloatArray, positive: BoolArray) -> FloatArray:
    """Return the weights, 0 or more, of a penalised logistic regression in which both kinds count the same.

    Args:
        rows: features, shape (models, numbers).
        positive: which of them are backdoored, shape (models,).
    """
    from scipy.optimize import minimize

    sign = np.where(positive, 1.0, -1.0)
    share = np.where(positive, 1 / positive.sum(), 1 / (~positive).sum())

    def loss(at: FloatArray) -> tuple[float, FloatArray]:
        weights, constant = at[:-1], at[-1]
        margin = sign * (rows @ weights + constant)
        slope = -sign * share / (1 + np.exp(margin))
        value = float((share * np.logaddexp(0, -margin)).sum() + PENALTY * (weights @ weights))
        return value, np.append(rows.T @ slope + 2 * PENALTY * weights, slope.sum())

    numbers = rows.shape[1]
    bounds = [(0.0, None)] * numbers + [(None, None)]
    found = minimize(loss, np.zeros(numbers + 1), jac=True, method="L-BFGS-B", bounds=bounds)
    weights: FloatArray = found.x[:-1]
    return weights


def score(measures: Measures, one: Scanned) -> float:
    """Return a model's score: that of its highest class, by the measures of its network."""
    return float(class_scores(measures[one.network], one.findings).max())


def rank_scores(measures: Measures, models: Sequence[Scanned], network: str) -> tuple[float, ...]:
    """Return the scores of the part "ranks" of a network, ascending."""
    return tuple(sorted(score(measures, one) for one in models if one.part == "ranks" and one.network == network))


def rate_of(models: Sequence[Scanned | Entry], networks: Sequence[str]) -> float:
    """Return the rate of false alarms at which a verdict is judged: the smallest that the zoo allows, `RATE` or more.

    Args:
        models: of the zoo, planned or scanned.
        networks: names of all of its networks.

    Raises:
        InputError: too few clean models to rank among.
    """
    fewest = min(sum(one.part == "ranks" and one.network == network for one in models) for network in networks)
    if fewest < LEAST_RANKS:
        raise InputError(
            f"a verdict ranks a model among {LEAST_RANKS} clean ones of its network or more, found {fewest}; make a"
            " larger zoo"
        )
    return max(RATE, 1 / (1 + fewest))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How a way to tell backdoored models from clean ones does on held-out models.

    Attributes:
        name: of it.
        auroc: area under the curve of true against false alarms, 0 to 1; 0.5 is chance. Models of all networks
            together, their scores by what is usual for each network.
        held_out: counts at the rate of false alarms.
        by_attack: models found and models there are, by the attack's name.
    """

    name: str
    auroc: float
    held_out: HeldOut
    by_attack: Mapping[str, tuple[int, int]]

    @property
    def highest_false(self) -> float:
        """The one-sided 95 % upper bound (Clopper and Pearson) of the share of clean models that are accused."""
        return _upper(self.held_out.alarms, self.held_out.clean)

    @property
    def lowest_true(self) -> float:
        """The one-sided 95 % lower bound of the share of backdoored models that are found."""
        return 1 - _upper(self.held_out.backdoored - self.held_out.found, self.held_out.backdoored)


def _upper(count: int, of: int) -> float:
    from scipy.stats import beta

    return 1.0 if count >= of else float(beta.ppf(0.95, count + 1, of - count))


def judged(name: str, measures: Measures, models: Sequence[Scanned], rate: float) -> Judged:
    """Return how measures do on the part "held-out", each model ranked among the part "ranks" of its own network.

    Args:
        name: for the table.
        measures: with their weights; a single one of weight 1 judges that number alone.
        models: of the zoo.
        rate: of false alarms that are allowed.

    Raises:
        InputError: no clean or no backdoored models were held out.
    """
    from sklearn.metrics import roc_auc_score

    held = [one for one in models if one.part == "held-out"]
    threshold = {network: threshold_of(rank_scores(measures, models, network), rate) for network in measures}
    scores = [score(measures, one) for one in held]
    kinds = [one.backdoored for one in held]
    _check_judged(kinds)
    alarms = [value > threshold[one.network] for one, value in zip(held, scores)]
    found = [one for one, alarm in zip(held, alarms) if alarm and one.backdoored]
    single = [one for one in found if one.target is not None]
    right = sum(int(class_scores(measures[one.network], one.findings).argmax()) == one.target for one in single)
    attacks = sorted({one.attack for one in held if one.attack and one.backdoored})
    return Judged(
        name=name,
        auroc=float(roc_auc_score(kinds, scores)),
        held_out=HeldOut(
            clean=kinds.count(False),
            alarms=sum(alarm for alarm, kind in zip(alarms, kinds) if not kind),
            backdoored=kinds.count(True),
            found=len(found),
            single_target=len(single),
            right_target=right,
        ),
        by_attack={
            attack: (
                sum(one.attack == attack for one in found),
                sum(one.attack == attack and one.backdoored for one in held),
            )
            for attack in attacks
        },
    )


def _check_judged(kinds: Sequence[bool]) -> None:
    if len(set(kinds)) < 2:
        raise InputError(
            "a verdict is judged by held-out models of both kinds; make a zoo of two rounds or more, with attacks that"
            " are held out"
        )


def check_plan(entries: Sequence[Entry], networks: Sequence[str]) -> None:
    """Refuse a zoo from which no table can be made, even if every attack works.

    Args:
        entries: of the zoo.
        networks: names of all of its networks.

    Raises:
        InputError: too few models of some part.
    """
    rate_of(entries, networks)
    learned = [one for one in entries if one.part == "weights"]
    clean = [sum(one.network == network and one.attack is None for one in learned) for network in networks]
    _check_learned(min(clean), sum(one.attack is not None for one in learned))
    _check_judged([one.attack is not None for one in entries if one.part == "held-out"])


def told_of(made: Mapping[str, Any]) -> str:
    """Return how the models of a zoo were made, for people.

    Args:
        made: of a row of its index.
    """
    # Rows of early zoos have no images kept back.
    new = "new to the model" if "kept" in made else "the model was trained on"
    return f"{made['size']} training images, {made['recipe']['epochs']} epochs, scanned with images {new}"


def tables_of(
    told: str,
    data: str,
    classes: int,
    image_shape: tuple[int, int, int],
    networks: Sequence[partial[Any]],
    clean_size: int,
    detectors: Sequence[Scanner],
    models: Sequence[Scanned],
) -> tuple[list[Table], list[Judged]]:
    """Return the calibration tables of a zoo, and how the verdict and each number alone do on what was held out.

    Args:
        told: how the models were made, for people.
        data: name of the data set that they were trained on.
        classes: of the models.
        image_shape: channels, height, width.
        networks: of the models; each gets a table.
        clean_size: clean images that the detectors were given.
        detectors: that looked.
        models: see `scan_zoo`; those that no detector could look at are left out.

    Raises:
        InputError: too few models of some part.
    """
    models = [one for one in models if one.findings]
    rate = rate_of(models, [architecture_of(network) for network in networks])
    measures = measures_of(models)
    learned = sum(one.part == "weights" for one in models)
    tables = []
    for network in networks:
        name = architecture_of(network)
        own = {name: measures[name]}
        some = [one for one in models if one.network == name]
        held = judged("Verdict", own, some, rate).held_out
        ranks = rank_scores(own, some, name)
        options = " ".join([name, *(f"{option}={value}" for option, value in network.keywords.items())])
        table = Table(
            name=f"{data}: {options}, {told}; {learned} models for the weights, {len(ranks)} clean ones to rank among,"
            f" {held.clean + held.backdoored} held out",
            data=data,
            classes=classes,
            image_shape=image_shape,
            architecture=name,
            arguments=dict(network.keywords),
            clean_size=clean_size,
            rate=rate,
            detectors=tuple(detectors),
            measures=measures[name],
            clean_scores=ranks,
            clean_class_scores=rank_scores({name: of_classes(measures[name])}, some, name),
            held_out=held,
        )
        tables.append(table)
    numbers = sorted({(one.detector, one.number) for all_of in measures.values() for one in all_of})
    alone = [judged(": ".join(pair), _alone(measures, pair), models, rate) for pair in numbers]
    return tables, [judged("Verdict", measures, models, rate), *alone]


def _alone(measures: Measures, pair: tuple[str, str]) -> Measures:
    """Return one of the numbers as all that is weighed."""
    return {
        network: [replace(one, weight=1.0) for one in some if (one.detector, one.number) == pair]
        for network, some in measures.items()
    }
