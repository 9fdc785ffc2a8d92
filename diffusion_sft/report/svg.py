"""From a matplotlib figure to an inline SVG that takes the page's font and colours, light or dark.

Colours are drawn as themselves and written as `var(--name, #colour)`; text stays text; ids are unique on the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from ..records import CATEGORIES, HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN, WEAKLY_KNOWN

COLOURS = {
    HIGHLY_KNOWN: "#0072b2",
    MAYBE_KNOWN: "#009e73",
    WEAKLY_KNOWN: "#e69f00",
    UNKNOWN: "#d55e00",
    "known": "#56b4e9",
    "unknown": "#cc79a7",
}
"""One colour per category and bucket, from the palette of Okabe and Ito, made for colour-blind eyes."""

MARKERS = {HIGHLY_KNOWN: "o", MAYBE_KNOWN: "s", WEAKLY_KNOWN: "^", UNKNOWN: "D", "known": "o", "unknown": "D"}
"""A shape besides the colour, for readers and printers without colours."""

INK, MUTED, RULE, PAPER, SHADE = "#1d2530", "#66707d", "#dde1e6", "#fefefe", "#f1f3f6"
OTHER = "#8a94a1"
"""For labels that are none of the categories and buckets."""

EARLY, LATE = "#005f94", "#8a4f9e"
"""What was measured at the early stop and at convergence."""

PUBLISHED = "#5b6470"
"""Published figures, always hollow and in shapes of their own."""

VARIABLES = {
    **{colour: f"--{label}" if label in CATEGORIES else f"--bucket-{label}" for label, colour in COLOURS.items()},
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    SHADE: "--shade",
    OTHER: "--other",
    EARLY: "--early",
    LATE: "--late",
    PUBLISHED: "--published",
}
"""The custom property of the stylesheet that stands for each colour."""

THEME = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diffusion_sft",
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
}

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


class Drawing(Markup):
    """An `<svg>` element for the inside of an HTML page that keeps its identity and the figure it was drawn from."""

    identity: str
    figure: Figure


def inline_svg(
    figure: Figure, identity: str, description: str, tooltips: Mapping[str, Sequence[str]] | None = None
) -> Drawing:
    """Draw a figure as an `<svg>` element for the inside of an HTML page.

    Args:
        identity: unique on the page; every id of the drawing begins with it.
        description: what a reader who cannot see the figure is told.
        tooltips: for the group id of a scatter, one text per point, shown while the pointer rests on it.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(THEME):
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in parent.findall(f"{{{_SVG}}}style"):
            parent.remove(child)
    for element in root.iter():
        _tidy(element)
    _keep_referenced_ids(root, identity, set(tooltips or {}))
    for group, texts in (tooltips or {}).items():
        _add_tooltips(root, f"{identity}-{group}", texts)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", description)
    ElementTree.register_namespace("", _SVG)
    drawing = Drawing(ElementTree.tostring(root, encoding="unicode"))
    drawing.identity, drawing.figure = identity, figure
    return drawing


def _tidy(element: ElementTree.Element) -> None:
    """Two decimals are a fiftieth of a pixel, blanks between elements carry nothing, the page sets fonts."""
    for name in {"d", "x", "y", "transform"} & element.attrib.keys():
        shorter = re.sub(
            r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), element.attrib[name]
        )
        element.set(name, " ".join(shorter.split()))
    if style := element.get("style"):
        style = re.sub(r"font-family: [^;]*(; )?", "", style)
        style = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", style)
        element.set("style", re.sub(r"#[0-9a-f]{6}", _variable, style))
    if not (element.text or "").strip():
        element.text = None
    element.tail = None


def _variable(colour: re.Match[str]) -> str:
    name = VARIABLES.get(colour[0])
    return f"var({name}, {colour[0]})" if name else colour[0]


def _keep_referenced_ids(root: ElementTree.Element, identity: str, kept: set[str]) -> None:
    """Drop the ids that nothing refers to and put `identity` before the others, so that drawings share a page."""
    link = f"{{{_XLINK}}}href"
    for element in root.iter():
        kept |= {element.attrib[link][1:]} if link in element.attrib else set()
        kept |= {name for value in element.attrib.values() for name in re.findall(r"url\(#([^)]+)\)", value)}
    for element in root.iter():
        if (name := element.attrib.pop("id", None)) in kept:
            element.set("id", f"{identity}-{name}")
        if target := element.attrib.pop(link, None):
            element.set("href", f"#{identity}-{target[1:]}")
        for key, value in element.attrib.items():
            element.set(key, re.sub(r"url\(#([^)]+)\)", rf"url(#{identity}-\1)", value))


def _add_tooltips(root: ElementTree.Element, group: str, texts: Sequence[str]) -> None:
    drawn = next(element for element in root.iter() if element.get("id") == group)
    shapes = {element for defs in drawn.iter(f"{{{_SVG}}}defs") for element in defs}
    marks = [e for e in drawn.iter() if e.tag in (f"{{{_SVG}}}use", f"{{{_SVG}}}path") and e not in shapes]
    for mark, text in zip(marks, texts, strict=True):
        ElementTree.SubElement(mark, f"{{{_SVG}}}title").text = text
