"""Making calibration tables: what the detectors say of every model of a zoo is made comparable, added up and ranked.

From each number of each detector the median over the clean models of the part "usual" is taken (of the class that has
most of it), and it is divided by the scaled median absolute deviation. Both are those of one network: what is usual for
one need not be for another. All numbers then count the same.

Weights were learned before, by logistic regressions on backdoored models. They fitted the attacks that they were
learned from: with any one of these left out, on digits and on CIFAR-10, equal weights told its models from clean ones
at least as well. What a detector sees of the next attack, those of before do not tell.

The clean models of the part "ranks" only lend their scores, each network's to a table of its own, and those of the part
"held-out" judge the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbackdoor.bench.judge import Judged, Measures, check_judged, judged, judged_alone, rank_scores, rate_of
from unbackdoor.bench.zoo import Entry
from unbackdoor.bench.zoo_scans import Scanned
from unbackdoor.errors import InputError
from unbackdoor.scan import Scanner
from unbackdoor.scan.calibration import ANOMALY, Measure, Table, of_classes
from unbackdoor.scan.outliers import GAUSSIAN
from unbackdoor.training import architecture_of

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

LEAST_MODELS = 4
"""Clean models of each network that say what is usual, at least."""


def measures_of(models: Sequence[Scanned]) -> dict[str, tuple[Measure, ...]]:
    """Return what is added up, with what is usual of it, by network; see the module's text.

    Args:
        models: clean ones of the part "usual" count.

    Raises:
        InputError: too few of them.
    """
    usual = [one for one in models if one.part == "usual" and not one.backdoored]
    networks = sorted({one.network for one in models})
    clean = {network: [one for one in usual if one.network == network] for network in networks}
    _check_usual(min(map(len, clean.values())))
    return {
        network: tuple(_measure(*pair, some) for pair in sorted({pair for one in some for pair in _numbers(one)}))
        for network, some in clean.items()
    }


def _check_usual(fewest: int) -> None:
    if fewest < LEAST_MODELS:
        raise InputError(
            f"what is usual is told by {LEAST_MODELS} clean models of each network or more, found {fewest}; make a"
            " larger zoo"
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


def check_plan(entries: Sequence[Entry], networks: Sequence[str]) -> None:
    """Refuse a zoo from which no table can be made, even if every attack works.

    Args:
        entries: of the zoo.
        networks: names of all of its networks.

    Raises:
        InputError: too few models of some part.
    """
    rate_of(entries, networks)
    usual = [one for one in entries if one.part == "usual" and one.attack is None]
    _check_usual(min(sum(one.network == network for one in usual) for network in networks))
    check_judged([one.attack is not None for one in entries if one.part == "held-out"])


def told_of(made: Mapping[str, Any]) -> str:
    """Return how the models of a zoo were made, for people.

    Args:
        made: of a row of its index.
    """
    epochs = made["recipe"]["epochs"]
    return f"{made['size']} training images, {epochs} epochs, scanned with images new to the model"


def tables_of(
    told: str,
    data: str,
    classes: int,
    image_shape: tuple[int, int, int],
    networks: Sequence[partial[Any]],
    clean_size: int,
    precision: str,
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
        precision: in which they ran.
        detectors: that looked.
        models: see `scan_zoo`; those that no detector could look at are left out.

    Raises:
        InputError: too few models of some part.
    """
    models = [one for one in models if one.findings]
    rate = rate_of(models, [architecture_of(network) for network in networks])
    measures = measures_of(models)
    tables = []
    for network in networks:
        name = architecture_of(network)
        own = {name: measures[name]}
        some = [one for one in models if one.network == name]
        usual = sum(one.part == "usual" and not one.backdoored for one in some)
        held = judged("Verdict", own, some, rate).held_out
        ranks = rank_scores(own, some, name)
        options = " ".join([name, *(f"{option}={value}" for option, value in network.keywords.items())])
        table = Table(
            name=f"{data}: {options}, {told}; {usual} clean models for what is usual, {len(ranks)} to rank among,"
            f" {held.clean + held.backdoored} held out",
            data=data,
            classes=classes,
            image_shape=image_shape,
            architecture=name,
            arguments=dict(network.keywords),
            clean_size=clean_size,
            precision=precision,
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
    itself = [judged_alone(name, models) for name in sorted({one for one, _ in numbers}) if _judges(name, models)]
    return tables, [judged("Verdict", measures, models, rate), *alone, *itself]


def _judges(detector: str, models: Sequence[Scanned]) -> bool:
    """Return whether a detector says by itself of held-out models of both kinds whether they are backdoored."""
    held = [one for one in models if one.part == "held-out" and detector in one.findings]
    said = {one.backdoored for one in held if one.findings[detector].backdoored is not None}
    return len(said) == 2


def _alone(measures: Measures, pair: tuple[str, str]) -> Measures:
    """Return one of the numbers as all that counts."""
    return {network: [one for one in some if (one.detector, one.number) == pair] for network, some in measures.items()}
