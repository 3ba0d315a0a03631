"""What commands say of a decoder that a secure training left beside its model."""

from __future__ import annotations

from unbackdoor.attacks import Criterion, Trigger
from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.reconstruction import Mean, Reconstruction, reconstruction
from unbackdoor.report import Fact
from unbackdoor.secure import Decoder, Part
from unbackdoor.training import Runtime


def reconstruction_of(
    network: Network,
    part: Part | None,
    test: ImageSet,
    runtime: Runtime,
    trigger: Trigger | None,
    criterion: Criterion | None,
) -> Reconstruction | None:
    """Return how well the part reconstructs test images, or None if there is none that does."""
    if not isinstance(part, Decoder):
        return None
    return reconstruction(network, part, test, runtime, trigger, criterion)


def reconstruction_rows(measured: Reconstruction | None) -> list[tuple[str, str]]:
    """Return the table rows."""
    return [(name, shown(mean)) for name, mean in _named(measured)]


def reconstruction_facts(measured: Reconstruction | None) -> dict[str, list[Fact]]:
    """Return the same for a page."""
    facts = [Fact(name=name, value=shown(mean)) for name, mean in _named(measured)]
    return {"Reconstruction error of the decoder (pixels from 0 to 1)": facts} if facts else {}


def _named(measured: Reconstruction | None) -> list[tuple[str, Mean]]:
    if measured is None:
        return []
    both = {"MSE, clean images": measured.clean, "MSE, triggered images": measured.triggered}
    return [(name, mean) for name, mean in both.items() if mean is not None]


def shown(mean: Mean) -> str:
    """Return a mean with its interval, for people."""
    return f"{mean.value:.5f}  [{mean.low:.5f}, {mean.high:.5f}]"
