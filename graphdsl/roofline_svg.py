"""A roofline as SVG: calls by operations a byte and operations a second, below what the machine
can do; both axes are logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape

from graphdsl.manifest import Json
from graphdsl.roofline import Limits

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 80, 150, 40, 60
"""Pixels around the field."""
COLOURS = {"f32": "#1f77b4", "bf16": "#d62728", "int8": "#2ca02c"}
STYLE = ("text { font: 13px sans-serif } .grid { stroke: #ddd } "
         ".roof { fill: none; stroke-width: 2 }")


@dataclass(frozen=True)
class Axes:
    """Powers of ten that the field goes from and to, along and up."""

    left: int
    right: int
    low: int
    high: int

    def x(self, intensity: float) -> float:
        share = (math.log10(intensity) - self.left) / (self.right - self.left)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, rate: float) -> float:
        share = (math.log10(rate) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def drawing(title: str, limits: Limits, calls: Sequence[Json]) -> str:
    """The SVG. Calls that read nothing from memory or compute nothing have no place in it; the
    area of a dot grows with the call's time, and its title says what the call is."""
    dots = [c for c in calls if c["memory_bytes"] > 0 and c["operations"] > 0]
    axes = _axes(limits, dots)
    longest = max((call["ms"] for call in dots), default=1.0)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
             f'width="{WIDTH}" height="{HEIGHT}">', f"<style>{STYLE}</style>",
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
             f'<text x="{LEFT}" y="24">{escape(title)}</text>',
             *_grid(axes), *_roofs(axes, limits),
             *(_dot(axes, call, longest) for call in dots), "</svg>"]
    return "\n".join(lines) + "\n"


def _axes(limits: Limits, dots: Sequence[Json]) -> Axes:
    """Whole decades around all that is drawn."""
    peaks = _peaks(limits)
    across = [peak / limits.read for peak in peaks.values()]
    across += [call["operations"] / call["memory_bytes"] for call in dots]
    up = [*peaks.values(), *(_rate(call) for call in dots)]
    left, right = math.floor(math.log10(min(across))) - 1, math.ceil(math.log10(max(across))) + 1
    high = math.ceil(math.log10(max(up)))
    low = min(math.floor(math.log10(min(up))), math.floor(math.log10(limits.read)) + left)
    return Axes(left, right, low, high + (10 ** high < 1.2 * max(up)))


def _rate(call: Json) -> float:
    """Operations a second."""
    found: float = call["operations"] / (call["ms"] * 1e-3)
    return found


def _peaks(limits: Limits) -> dict[str, float]:
    return {name: peak for name, peak in asdict(limits).items() if name in COLOURS}


def _grid(axes: Axes) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for power in range(axes.left, axes.right + 1):
        x = axes.x(10.0 ** power)
        yield f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>'
        yield (f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">'
               f"{10.0 ** power:g}</text>")
    for power in range(axes.low, axes.high + 1):
        y = axes.y(10.0 ** power)
        yield f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield (f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
               f"{10.0 ** (power - 9):g}</text>")
    yield (f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 16}" text-anchor="middle">'
           "operations for each byte of memory</text>")
    yield (f'<text transform="translate(20 {(TOP + bottom) / 2}) rotate(-90)" '
           'text-anchor="middle">Gop/s</text>')


def _roofs(axes: Axes, limits: Limits) -> Iterator[str]:
    """The line of memory up to the highest peak, and the peaks. Equal ones share a label."""
    start, highest = 10.0 ** axes.left, max(_peaks(limits).values())
    start = max(start, 10.0 ** axes.low / limits.read)
    points = [(start, start * limits.read), (highest / limits.read, highest)]
    label = f"read {limits.read / 1e9:.1f} GB/s"
    yield _roof(axes, points, "#444", label)
    x = math.sqrt(points[0][0] * points[1][0])
    yield (f'<text x="{axes.x(x) - 8:.1f}" y="{axes.y(x * limits.read) - 8:.1f}" '
           f'text-anchor="end" fill="#444">{label}</text>')
    labels: dict[float, list[str]] = {}
    for name, peak in _peaks(limits).items():
        labels.setdefault(peak, []).append(name)
    for peak, names in labels.items():
        label = f"{', '.join(names)} {peak / 1e9:.0f} Gop/s"
        yield _roof(axes, [(peak / limits.read, peak), (10.0 ** axes.right, peak)],
                    COLOURS[names[0]], label)
        yield (f'<text x="{WIDTH - RIGHT + 6}" y="{axes.y(peak) + 4:.1f}" '
               f'fill="{COLOURS[names[0]]}">{label}</text>')


def _roof(axes: Axes, points: Sequence[tuple[float, float]], colour: str, label: str) -> str:
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
    return (f'<polyline class="roof" points="{path}" stroke="{colour}">'
            f"<title>{label}</title></polyline>")


def _dot(axes: Axes, call: Json, longest: float) -> str:
    x, y = axes.x(call["operations"] / call["memory_bytes"]), axes.y(_rate(call))
    radius = 3 + 9 * math.sqrt(call["ms"] / longest)
    what = (f"{call['op']} {call['line']} {call['scope']}: {call['ms']:.3f} ms, "
            f"{_rate(call) / 1e9:.1f} Gop/s, {call['share']:.0%} of {call['bound']}")
    return (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{COLOURS[call["kind"]]}" '
            f'fill-opacity="0.6"><title>{escape(what)}</title></circle>')


__all__ = ["drawing"]
