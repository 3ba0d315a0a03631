"""`Stored`: what a model file says, before anything is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unbackdoor.models.edits import Edit


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The checked contents of a model file; None is what the file does not say.

    Attributes:
        format: its format in words, for reports.
        state: names to tensors, of any floating-point type.
        architecture: as a `Description` has it; never trusted to be code.
        arguments: the network's own options.
        class_names: one per output.
        classes: number of outputs, where only that is known.
        image_shape: channels, height, width.
        mean: per channel, pixel units [0, 1].
        std: per channel, pixel units.
        edits: made to the architecture.
        provenance: where the model came from, as its writer told it.
        backdoored: the mark of a model that was backdoored on purpose.
        notes: sentences that a report must show.
    """

    format: str
    state: dict[str, Tensor]
    architecture: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    edits: tuple[Edit, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    backdoored: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
