"""The results as one SVG: how far each ratio is from its goal, with the spread of its rounds."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.benchmarks.measuring import Result

_ROW, _LEFT, _WIDTH, _TOP, _RIGHT = 26, 400, 420, 56, 120
_GOOD, _BAD, _PLAIN = "#2e7d32", "#c62828", "#546e7a"


def svg(results: Sequence[Result]) -> str:
    """Bars that end left of the line hold. The scale is logarithmic: half and double look alike."""
    shown = [result for result in results if result.goal is not None and result.ratio > 0]
    worst = [_distances(result) for result in shown]
    reach = max([1.0, *(abs(value) for values in worst for value in values)])
    height = _TOP + _ROW * len(shown) + 24
    middle = _LEFT + _WIDTH / 2

    def x(distance: float) -> float:
        return middle + distance / reach * _WIDTH / 2

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + _RIGHT}"'
        f' height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="12" y="24" font-size="15" font-weight="bold">Measured against the goal</text>',
        f'<text x="{middle - 6}" y="{_TOP - 12}" text-anchor="end" fill="{_GOOD}">better</text>',
        f'<text x="{middle + 6}" y="{_TOP - 12}" fill="{_BAD}">worse</text>',
    ]
    for number, (result, (value, low, high)) in enumerate(zip(shown, worst, strict=True)):
        y = _TOP + _ROW * number
        color = _GOOD if result.holds else _BAD
        left, right = sorted((x(0), x(value)))
        parts += [
            f'<text x="{_LEFT - 12}" y="{y + 14}" text-anchor="end">{escape(result.name)}</text>',
            f'<rect x="{left:.1f}" y="{y + 3}" width="{max(1.0, right - left):.1f}"'
            f' height="{_ROW - 12}" fill="{color}"/>',
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y + 10}" y2="{y + 10}"'
            f' stroke="black"/>',
            f'<text x="{_LEFT + _WIDTH + 8}" y="{y + 14}" fill="{_PLAIN}">'
            f"{result.ratio:.2f} ({escape(str(result.goal))})</text>",
        ]
    bottom = _TOP + _ROW * len(shown)
    parts.append(
        f'<line x1="{middle}" x2="{middle}" y1="{_TOP - 6}" y2="{bottom}" stroke="{_PLAIN}"/>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _distances(result: Result) -> tuple[float, float, float]:
    """Binary logarithms of ratio, lowest and highest round over the goal; above 0 is a miss."""
    assert result.goal is not None
    sign = 1 if result.goal.bound == "at most" else -1
    return tuple(  # type: ignore[return-value]
        sign * math.log2(max(value, 1e-6) / result.goal.value)
        for value in (result.ratio, *result.spread)
    )
