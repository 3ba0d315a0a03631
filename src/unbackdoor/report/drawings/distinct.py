"""Series that are unlike each other, such as classes: each has a colour and a shape or dash of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from unbackdoor.report.drawings.canvas import ACCENT, INK, MUTED, WIDE, Canvas, frame, value_axis
from unbackdoor.report.text import shorten

if TYPE_CHECKING:
    import altair as alt

COLOURS = ("#4477aa", "#228833", "#b8a429", "#ee6677", "#aa3377", "#44a9cc")
"""After Paul Tol's bright scheme, which people with any colour vision can tell apart; seen on light and on dark."""
SHAPES = ("circle", "triangle-up", "square", "diamond", "triangle-down")
"""Once the colours are used up, the next shape goes through them again."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
SHARES = (0, 0.01, 0.03, 0.1, 0.3, 1)
"""Ticks of a histogram, on a scale that is linear up to the second and logarithmic above."""


def distinct(
    points: Mapping[str, Sequence[tuple[float, float]]],
    marks: Literal["points", "lines", "steps"],
    titles: tuple[str, str],
    logs: tuple[bool, bool],
    stands_out: str,
    canvas: Canvas,
) -> alt.LayerChart:
    """Draw named series of (x, y), the one that stands out on top of the others; all are in the legend."""
    import altair as alt

    names = [shorten(name, canvas.name_cells) for name in points]
    if len(set(names)) < len(names):
        names = [f"{number} {name}" for number, name in enumerate(names, 1)]
    looks = _looks([name == stands_out for name in points])
    # Marks lie in the order of the rows: what stands out is on top.
    ordered = sorted(zip(names, points.items(), strict=True), key=lambda entry: entry[1][0] == stands_out)
    rows = [{"series": name, "x": x, "y": y} for name, (_, one) in ordered for x, y in one]
    columns = min(len(names), 4 if canvas is WIDE else 2)
    legend = None
    if len(names) > 1:
        legend = alt.Legend(
            title=None, orient="top", columns=columns, columnPadding=3 * canvas.font, labelLimit=0, symbolOpacity=1
        )

    def scaled(kind: Any, channel: str) -> Any:
        scale = alt.Scale(domain=names, range=[look[channel] for look in looks])
        return kind("series:N", sort=names, legend=legend, scale=scale)

    x = value_axis("x", titles[0], logs[0], canvas.width // 80)
    y = value_axis("y", titles[1], logs[1], 5)
    if marks == "steps":
        y = alt.Y(
            "y:Q",
            scale=alt.Scale(type="symlog", constant=SHARES[1], domain=[0, 1], nice=False),
            axis=alt.Axis(title=shorten(titles[1], 30), values=list(SHARES), format="~%"),
        )
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, y=y, color=scaled(alt.Color, "colour"))
    if marks == "points":
        drawn = base.mark_point(filled=True, size=26, opacity=0.8).encode(shape=scaled(alt.Shape, "shape"))
    else:
        drawn = base.mark_line(strokeWidth=2, interpolate="step-after" if marks == "steps" else "linear").encode(
            strokeDash=scaled(alt.StrokeDash, "dash")
        )
    height = 340 if marks == "points" else 240
    return alt.LayerChart(layer=[drawn], **frame(height, above=22 * -(-len(names) // columns) if legend else 0))


def _looks(stand_out: Sequence[bool]) -> list[dict[str, Any]]:
    """Return the look of each series: what stands out is a cross in the colour of the text or of the accent."""
    others = len(stand_out) - sum(stand_out)
    looks: list[dict[str, Any]] = []
    for number, outstanding in enumerate(stand_out):
        if outstanding:
            # Among the colours of many classes only the text's own is not one more of them.
            looks.append({"colour": ACCENT if others < 2 else INK, "shape": "cross", "dash": DASHES[0]})
        elif others == 1:
            looks.append({"colour": MUTED, "shape": "circle", "dash": DASHES[1]})
        else:
            looks.append(
                {
                    "colour": COLOURS[number % len(COLOURS)],
                    "shape": SHAPES[number // len(COLOURS) % len(SHAPES)],
                    "dash": DASHES[number // len(COLOURS) % len(DASHES)],
                }
            )
    return looks
