"""Making calibration tables: what the detectors say of every model of a zoo is weighed and ranked.

The numbers of each detector are first made comparable: from each, the median over the clean models of the part
"weights" is taken (of the class that has most of it), and it is divided by the scaled median absolute deviation. Both
are those of one network: what is usual for one need not be for another. Then two questions are learned from the models
of all networks, one after the other, with weights of 0 or more and a penalty of PENALTY times their squares. Which
class is the target of a backdoored model? The numbers of a class, f_c, get the weights a that minimise

    mean over backdoored models with one target t of -log softmax_c( sum of a asinh(f_c) )[t].

With B = sum of a asinh(f_c), c the target, or the highest class of a model that has none, and with the numbers g of the
whole model: is it backdoored at all? Weights v and w and a constant b minimise

    mean over backdoored models of log(1 + exp(-z)) + mean over clean models of log(1 + exp(z)),
    z = b + v B + sum of w asinh(g).

In the end a number of a class weighs v a. Learned together, numbers of the whole model would leave those of classes
without weight: they tell backdoored models from clean ones as well, and cannot tell which class it is. The clean models
of the part "ranks" then only lend their scores, each network's to a table of its own, and those of the part "held-out"
judge the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from unbackdoor.bench.judge import Judged, Measures, check_judged, judged, judged_alone, rank_scores, rate_of
from unbackdoor.bench.zoo import Entry
from unbackdoor.bench.zoo_scans import Scanned
from unbackdoor.errors import InputError
from unbackdoor.scan import Scanner
from unbackdoor.scan.calibration import ANOMALY, Measure, Table, class_scores, of_classes
from unbackdoor.scan.outliers import GAUSSIAN
from unbackdoor.training import architecture_of

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

PENALTY = 0.05
"""Of the squared weights; set once, before any model was judged."""
LEAST_SAY = 1e-3
"""Of what numbers of classes say, v at least: the class is told even where other numbers suffice for the verdict."""
LEAST_MODELS = 4
"""Clean models of each network, and backdoored ones of all, from which weights are learned, at least."""


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
    features = [_features(one, usual[one.network], numbers).numpy() for one in learned]
    weight = dict(zip(numbers, _weights(learned, features, [number == ANOMALY for _, number in numbers]).tolist()))
    return {
        network: tuple(replace(measure, weight=weight[pair]) for pair, measure in measures.items())
        for network, measures in usual.items()
    }


def _weights(learned: Sequence[Scanned], features: Sequence[FloatArray], of_class: Sequence[bool]) -> FloatArray:
    """Return what each number weighs.

    Args:
        learned: models.
        features: of each model, shape (classes, numbers).
        of_class: which numbers are of classes, and not of the whole model, shape (numbers,).
    """
    classwise = np.array(of_class)
    targets = [one.target if one.backdoored else None for one in learned]
    told = [(rows[:, classwise], target) for rows, target in zip(features, targets) if target is not None]
    blame = conditional_logit(told) if told else np.ones(int(classwise.sum()))
    rows = []
    for one, target in zip(features, targets):
        scores = one[:, classwise] @ blame
        c = int(scores.argmax()) if target is None else target
        rows.append(np.append(scores[c], one[c, ~classwise]))
    say, *others = logistic(np.stack(rows), np.array([one.backdoored for one in learned])).tolist()
    weights = np.empty(len(classwise))
    weights[classwise], weights[~classwise] = max(say, LEAST_SAY) * blame, others
    return weights


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


def conditional_logit(models: Sequence[tuple[FloatArray, int]]) -> FloatArray:
    """Return the weights, 0 or more, of a penalised conditional logistic regression: which class is the target?

    Args:
        models: one or more; features of each class, shape (classes, numbers), and the target.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        value, slope = PENALTY * float(weights @ weights), 2 * PENALTY * weights
        for features, target in models:
            told = log_softmax(features @ weights)
            value -= float(told[target]) / len(models)
            slope = slope + (np.exp(told) @ features - features[target]) / len(models)
        return value, slope

    numbers = models[0][0].shape[1]
    found = minimize(loss, np.zeros(numbers), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * numbers)
    weights: FloatArray = found.x
    return weights


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
    """Return one of the numbers as all that is weighed."""
    return {
        network: [replace(one, weight=1.0) for one in some if (one.detector, one.number) == pair]
        for network, some in measures.items()
    }
