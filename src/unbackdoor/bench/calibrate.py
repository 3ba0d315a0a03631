"""Making calibration tables: what the detectors say of the clean models of a zoo, and how the verdict does with it.

Of each network the clean models of the part "reference" are what others are compared with, and the part "held-out"
judges the result. Nothing is learned from backdoored models: weights of the detectors, learned from some, fitted their
attacks, and did no better than none on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.bench.judge import Judged, check_judged, judged, judged_alone, rate_of
from unbackdoor.bench.zoo import Entry
from unbackdoor.bench.zoo_scans import Scanned
from unbackdoor.scan import Scanner
from unbackdoor.scan.calibration import Table
from unbackdoor.training import architecture_of


def check_plan(entries: Sequence[Entry], networks: Sequence[str]) -> None:
    """Refuse a zoo from which no table can be made, even if every attack works.

    Args:
        entries: of the zoo.
        networks: names of all of its networks.

    Raises:
        InputError: too few models of some part.
    """
    rate_of(entries, networks)
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
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    networks: Sequence[partial[Any]],
    clean_size: int,
    precision: str,
    detectors: Sequence[Scanner],
    models: Sequence[Scanned],
) -> tuple[list[Table], list[Judged]]:
    """Return the calibration tables of a zoo, and how the verdict and each detector alone do on what was held out.

    Args:
        told: how the models were made, for people.
        data: name of the data set that they were trained on.
        class_names: of the models.
        image_shape: channels, height, width.
        networks: of the models; each gets a table.
        clean_size: clean images that the detectors were given.
        precision: in which they ran.
        detectors: that looked; one that could not look at some clean model is left out.
        models: see `scan_zoo`.

    Raises:
        InputError: too few models of some part.
    """
    names = [architecture_of(network) for network in networks]
    rate = rate_of(models, names)
    references = {name: _numbers(models, name, detectors) for name in names}
    tables = []
    for network, name in zip(networks, names):
        own = [one for one in models if one.network == name]
        held = judged("Verdict", references, own, rate).held_out
        options = " ".join([name, *(f"{option}={value}" for option, value in network.keywords.items())])
        table = Table(
            name=f"{data}: {options}, {told}; {sum(one.part == 'reference' for one in own)} clean models to compare"
            f" with, {held.clean + held.backdoored} held out",
            data=data,
            class_names=tuple(class_names),
            image_shape=image_shape,
            architecture=name,
            arguments=dict(network.keywords),
            clean_size=clean_size,
            precision=precision,
            rate=rate,
            detectors=tuple(one for one in detectors if type(one).__name__ in references[name]),
            clean=references[name],
            held_out=held,
        )
        tables.append(table)
    heard = [
        name for name in sorted({one for of in references.values() for one in of}) if len(_kinds(name, models)) == 2
    ]
    alone = [judged(detector, _only(references, detector), models, rate) for detector in heard]
    itself = [judged_alone(detector, models) for detector in heard if len(_kinds(detector, models, decided=True)) == 2]
    return tables, [judged("Verdict", references, models, rate), *alone, *itself]


def _numbers(
    models: Sequence[Scanned], network: str, detectors: Sequence[Scanner]
) -> dict[str, Float[Tensor, "n _ k"]]:
    """Return what the detectors say of the clean models of a network that others are compared with."""
    some = [one.findings for one in models if one.part == "reference" and one.network == network]
    names = [type(detector).__name__ for detector in detectors]
    heard = {name: [of[name].numbers for of in some if name in of] for name in names}
    # A file has no place for what is no number.
    return {
        name: torch.stack(numbers)
        for name, numbers in heard.items()
        if len(numbers) == len(some) and all(bool(one.isfinite().all()) for one in numbers)
    }


def _only(
    references: Mapping[str, Mapping[str, Float[Tensor, "n _ k"]]], detector: str
) -> dict[str, dict[str, Float[Tensor, "n _ k"]]]:
    """Return one of the detectors as all that counts."""
    return {
        network: {name: numbers for name, numbers in of.items() if name == detector}
        for network, of in references.items()
    }


def _kinds(detector: str, models: Sequence[Scanned], decided: bool = False) -> set[bool]:
    """Return of which kinds the held-out models are that a detector has a word on, or an answer by itself."""
    held = [one for one in models if one.part == "held-out" and detector in one.findings]
    return {one.backdoored for one in held if not decided or one.findings[detector].backdoored is not None}
