"""The chart of a report: the error of every layer of the main run, drawn by Matplotlib as SVG that lives in the page.

Colours are CSS variables, so one drawing serves light and dark pages, and text stays text. The bytes depend on the
report alone (and on Matplotlib's version).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 1080, 430  # CSS pixels on a wide screen
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 30, 34
_INNER = WIDTH - _LEFT - _RIGHT
# Matplotlib writes colours as it is given them; each of these is replaced by the page's own variable.
_COLOURS = {
    name: f"#0000{number:02x}"
    for number, name in enumerate(("float64", "float32", "noise", "bound", "fault", "muted", "grid", "band", "page"), 1)
}
_LOWEST, _HIGHEST = -18, 9  # decades; what lies beyond is drawn at the edge
_SPLIT = 20  # a top-level module of more layers than this is split into its numbered children
_LETTER_WIDTH, _SUPERSCRIPT = 6.0, str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Band:
    """Neighbouring layers of one module: `label`, and the positions from `start` up to `stop`."""

    label: str
    start: int
    stop: int


def bands(modules: Sequence[str]) -> list[Band]:
    """The network's parts along the axis, from the modules' paths in order: "stem", "blocks.0", "blocks.1", ..."""
    tops = [module.partition(".")[0] for module in modules]
    labels = []
    for module, top in zip(modules, tops, strict=True):
        child = re.match(r"[^.]*\.\d+(?=\.|$)", module)
        labels.append(child[0] if child and tops.count(top) > _SPLIT else top)
    found: list[Band] = []
    for position, label in enumerate(labels):
        if found and found[-1].label == label:
            found[-1] = Band(label, found[-1].start, position + 1)
        else:
            found.append(Band(label, position, position + 1))
    return found


def draw(layers: Sequence[Mapping[str, Any]], flags: Mapping[int, int], hints: Sequence[str]) -> str:
    """The chart of one run's layers as an `<svg>` element for an HTML page.

    Args:
        layers: `layers` of the main run, at least one (porting/report/schema.py).
        flags: position of a layer, to the number under which the page lists its fault.
        hints: what hovering over each layer says; lines, the layer's name first.
    """
    # Imported here: only a page that is being written needs them.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.family": "DejaVu Sans",  # comes with Matplotlib: what fits does not depend on this machine's fonts
        "font.size": 12,
        "path.simplify": False,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever this user's own settings say
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, facecolor="none")
        FigureCanvasSVG(figure)
        box = (_LEFT / WIDTH, _BOTTOM / HEIGHT, _INNER / WIDTH, (HEIGHT - _TOP - _BOTTOM) / HEIGHT)
        _fill(figure.add_axes(box, facecolor="none"), layers, flags)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _for_page(buffer.getvalue(), len(layers), hints)


def _fill(axes: Axes, layers: Sequence[Mapping[str, Any]], flags: Mapping[int, int]) -> None:
    low, high = _decades(layers)

    def height(error: float | None) -> float:
        """Where an error is drawn, in decades: zeros on the lower edge, what is not finite on the upper."""
        if error is None:
            return high
        return min(max(math.log10(error), low), high) if error else low

    positions = range(len(layers))
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(low - 0.35, high + 0.35)
    _scale(
        axes, low, high, any(layer["error"] is None for layer in layers), any(layer["error"] == 0 for layer in layers)
    )
    _parts(axes, [layer["module"] for layer in layers])

    def marks(chosen: Callable[[int], bool], errors: Sequence[float | None], gid: str, **look: Any) -> None:
        at = [position for position in positions if chosen(position)]
        if at:
            axes.plot(at, [height(errors[position]) for position in at], linestyle="none", gid=gid, **look)

    singles = [layer["float32"] or {"error": None, "noise": math.nan, "bound": math.nan} for layer in layers]
    if any(layer["float32"] for layer in layers):

        def level(value: float) -> float:
            return math.nan if math.isnan(value) else height(value)

        noise, limit = ([level(single[key]) for single in singles] for key in ("noise", "bound"))
        axes.fill_between(positions, noise, limit, color=_COLOURS["float32"], alpha=0.2, linewidth=0, gid="allowed")
        axes.plot(positions, noise, color=_COLOURS["noise"], linewidth=1.1, gid="noise")
    look = {"color": _COLOURS["float32"], "marker": "D", "markersize": 3.1, "markeredgewidth": 0, "zorder": 4}
    errors32 = [single["error"] for single in singles]
    marks(lambda n: bool(layers[n]["float32"] and layers[n]["float32"]["passed"]), errors32, "float32", **look)
    axes.step(
        positions,
        [height(layer["bound"]) for layer in layers],
        where="mid",
        color=_COLOURS["bound"],
        linewidth=1.3,
        linestyle=(0, (5, 3)),
        gid="bound",
    )
    first = layers[0]["bound"]
    axes.annotate(
        f"bound {first:.2g}",
        (len(layers) - 1, height(first)),
        (0, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=11,
        color=_COLOURS["bound"],
        parse_math=False,
    )
    look = {"color": _COLOURS["float64"], "marker": "o", "markersize": 4.2, "markeredgewidth": 0, "zorder": 5}
    errors = [layer["error"] for layer in layers]
    marks(lambda n: bool(layers[n]["passed"]), errors, "float64", **look)
    look = {"color": _COLOURS["fault"], "marker": "X", "markersize": 6.5, "markeredgewidth": 0, "zorder": 6}
    marks(lambda n: not layers[n]["passed"], errors, "failed", **look)
    marks(lambda n: bool(layers[n]["float32"] and not layers[n]["float32"]["passed"]), errors32, "failed32", **look)
    _flags(axes, flags, high)


def _decades(layers: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """The axis: from the smallest error above zero to the largest error or bound, in whole decades."""
    values = [value for layer in layers for value in (layer["error"], layer["bound"]) if value]
    for layer in layers:
        if layer["float32"]:
            values += [value for value in (layer["float32"][key] for key in ("error", "noise", "bound")) if value]
    values = values or [1e-10]
    low = max(math.floor(math.log10(min(values)) - 0.3), _LOWEST)
    high = min(math.ceil(math.log10(max(values)) + 0.3), _HIGHEST)
    special = any(layer["error"] is None for layer in layers)
    return min(low, high - 2), max(high, low + 2) + special


def _scale(axes: Axes, low: int, high: int, infinite: bool, zero: bool) -> None:
    step = 2 if high - low > 9 else 1
    decades = [decade for decade in range(low, high + 1) if (decade - low) % step == 0]
    labels = {decade: f"10{str(decade).translate(_SUPERSCRIPT)}" for decade in decades}
    if zero:
        labels[low] = "0"  # drawn on the edge
    if infinite:
        labels[high] = "not finite"
    axes.set_yticks(list(labels), list(labels.values()), color=_COLOURS["muted"], parse_math=False)
    if infinite:
        axes.get_yticklabels()[list(labels).index(high)].set_fontsize(10)
    axes.tick_params(length=0, pad=6)
    for edge in axes.spines.values():
        edge.set_visible(False)
    axes.grid(axis="y", color=_COLOURS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)


def _parts(axes: Axes, modules: Sequence[str]) -> None:
    """Faint bands of alternating tint, named below where the name fits."""
    axes.set_xticks([])
    pixels = _INNER / len(modules)
    parents: set[str] = set()
    for number, band in enumerate(bands(modules)):
        if number % 2 == 0:
            axes.axvspan(band.start - 0.5, band.stop - 0.5, color=_COLOURS["band"], linewidth=0, zorder=0)
        parent, _, child = band.label.rpartition(".")
        # Matplotlib warns of letters that its font lacks; a module's path has none in practice.
        names = [band.label] if parent not in parents or not parent else []
        parents.add(parent)
        for name in [*names, child]:
            if (
                name.isascii()
                and name.isprintable()
                and len(name) * _LETTER_WIDTH < (band.stop - band.start) * pixels - 2
            ):
                axes.annotate(
                    name,
                    ((band.start + band.stop - 1) / 2, 0),
                    (0, -9),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    ha="center",
                    va="top",
                    fontsize=11,
                    color=_COLOURS["muted"],
                    parse_math=False,
                )
                break


def _flags(axes: Axes, flags: Mapping[int, int], high: int) -> None:
    """A line at each layer that the page lists as faulty, with its number above where numbers do not collide."""
    last = -math.inf
    for position, number in sorted(flags.items()):
        axes.axvline(position, color=_COLOURS["fault"], linewidth=1, alpha=0.55, zorder=2)
        x = position * _INNER / (axes.get_xlim()[1] + 0.5)
        if x - last < 18:
            continue
        last = x
        axes.annotate(
            str(number),
            (position, 1),
            (0, 11),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10,
            color=_COLOURS["page"],
            bbox={"boxstyle": "circle,pad=0.28", "facecolor": _COLOURS["fault"], "edgecolor": "none"},
        )


def _for_page(text: str, count: int, hints: Sequence[str]) -> str:
    """The drawing as HTML wants it: no namespaces, no styles that leak out, the page's colours.

    Over it lies a place to hover for each layer, as high as the chart, which links to the layer's row of the table.
    """
    for name, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    svg = ElementTree.fromstring(text)
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in [key for key in element.attrib if "}" in key]:
            element.set(key.rpartition("}")[2], element.attrib.pop(key))
        element.text = (element.text or "").strip()
        element.tail = ""
    for parent in list(svg.iter()):
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    svg.attrib = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "class": "chart", "role": "img", "aria-labelledby": "chart-title"}
    places = ElementTree.SubElement(svg, "g", {"class": "places"})
    places.extend(_places(count, hints))
    return ElementTree.tostring(svg, encoding="unicode")


def _places(count: int, hints: Sequence[str]) -> Iterator[ElementTree.Element]:
    width = _INNER / count
    for position, hint in enumerate(hints):
        link = ElementTree.Element("a", {"href": f"#layer-{position}", "tabindex": "-1"})
        ElementTree.SubElement(link, "title").text = hint
        shape = {"x": _LEFT + position * width, "y": _TOP, "width": width, "height": HEIGHT - _TOP - _BOTTOM}
        ElementTree.SubElement(link, "rect", {key: f"{value:.6g}" for key, value in shape.items()})
        yield link
