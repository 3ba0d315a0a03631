"""How many images a search shows the network in one pass: fewer, the larger they are, so that memory is not filled.

What a pass keeps for its gradients grows with the places of an image, not with its channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unbackdoor.training import Runtime

PLACES = {"cpu": 512 * 32 * 32, "cuda": 4096 * 32 * 32}
"""Of all images of a pass together: with more, a processor is no faster."""


def at_once(shape: Sequence[int], runtime: Runtime) -> int:
    """Return how many images of that shape go into a pass, 1 or more.

    Args:
        shape: of an image; height and width come last.
        runtime: device.
    """
    return max(1, PLACES[runtime.place.type] // (shape[-2] * shape[-1]))


def tiles(rows: int, columns: int, shape: Sequence[int], runtime: Runtime) -> Iterator[tuple[slice, slice]]:
    """Yield the parts, each one pass, of a table that has an image for each row and column.

    Args:
        rows: such as changes that are tried, one a class.
        columns: such as images that each of them is tried on.
        shape: of an image.
        runtime: device.

    Yields:
        The rows and columns of a part.
    """
    most = at_once(shape, runtime)
    wide = min(columns, most)
    high = most // wide
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            yield slice(top, top + high), slice(left, left + wide)
