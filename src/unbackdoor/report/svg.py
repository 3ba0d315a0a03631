"""Drawings that are put into a page as they are, so only what is known to be harmless is let through."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from unbackdoor.errors import InputError

_NAMESPACE = "http://www.w3.org/2000/svg"
_SHAPES = frozenset({"g", "path", "line", "rect", "circle", "text", "tspan"})
_GEOMETRY = frozenset({"transform", "d", "x", "y", "x1", "y1", "x2", "y2", "dx", "dy", "width", "height", "r"})
_PAINT = frozenset({"fill", "fill-opacity", "opacity", "stroke", "stroke-width", "stroke-opacity"})
_STYLE = frozenset({"stroke-dasharray", "stroke-linecap", "stroke-linejoin", "text-anchor", "font-size"})
_ATTRIBUTES = _GEOMETRY | _PAINT | _STYLE | {"class", "cx", "cy", "font-weight"}
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")


def harmless_svg(svg: str, label: str | None = None) -> str:
    """Return the drawing reduced to plain shapes and text, scaled by its `viewBox`, named for screen readers.

    Scripts, styles, links, images, ids and references vanish; so do sizes and fonts, which the page decides.

    Args:
        svg: the drawing.
        label: what it shows, in a sentence or two; None keeps the name that it has.

    Raises:
        InputError: not a drawing, or one without a `viewBox`.
    """
    try:
        source = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise InputError(f"the chart is not an SVG drawing ({error}); make it with unbackdoor.report") from error
    if source.tag != f"{{{_NAMESPACE}}}svg" or "viewBox" not in source.attrib:
        raise InputError("the chart is not an SVG drawing with a viewBox; make it with unbackdoor.report")
    drawing = ElementTree.Element("svg", xmlns=_NAMESPACE, viewBox=source.attrib["viewBox"], role="img")
    drawing.set("aria-label", source.get("aria-label", "chart") if label is None else label)
    _copy_shapes(source, drawing)
    return ElementTree.tostring(drawing, encoding="unicode")


def _copy_shapes(source: ElementTree.Element, target: ElementTree.Element) -> None:
    for child in source:
        name = child.tag.removeprefix(f"{{{_NAMESPACE}}}")
        if name not in _SHAPES or child.get("display") == "none" or child.get("d") == "":
            continue
        attributes = {
            key: _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.2f}", value)
            for key, value in child.attrib.items()
            if key in _ATTRIBUTES and "url(" not in value
        }
        copy = ElementTree.SubElement(target, name, attributes)
        copy.text = child.text
        _copy_shapes(child, copy)
