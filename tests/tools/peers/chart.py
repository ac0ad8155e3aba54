"""Bar charts as SVG, without other packages."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Iterator, Sequence


@dataclass
class Bar:
    label: str
    value: float
    text: str
    #: The quartiles of the rounds, drawn as a thin line.
    low: float
    high: float
    #: True for the bar that is emphasized.
    ours: bool = False


@dataclass
class Panel:
    title: str
    subtitle: str
    bars: list[Bar]


WIDTH = 870
MARGIN = 24
LABELS = 340
ROW = 24
BAR = 15
HEAD = 50
GAP = 26
OURS, OTHERS, INK, FAINT, PAPER = "#c2410c", "#94a3b8", "#1e293b", "#64748b", "#ffffff"
FONT = "font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\""


def svg(panels: Sequence[Panel]) -> str:
    """Return panels one below the other, each with its own scale from 0."""
    height = MARGIN + sum(HEAD + ROW * len(panel.bars) + GAP for panel in panels)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" {FONT} font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
    ]
    top = MARGIN
    for panel in panels:
        lines += _panel(panel, top)
        top += HEAD + ROW * len(panel.bars) + GAP
    return "\n".join([*lines, "</svg>", ""])


def _panel(panel: Panel, top: int) -> Iterator[str]:
    left = MARGIN + LABELS
    # Space on the right for the figure after the longest bar.
    room = WIDTH - MARGIN - left - 64
    scale = room / max(max(bar.value, bar.high) for bar in panel.bars)
    yield f'<text x="{MARGIN}" y="{top + 14}" font-size="16" font-weight="600">'
    yield f"{escape(panel.title)}</text>"
    yield f'<text x="{MARGIN}" y="{top + 33}" fill="{FAINT}">{escape(panel.subtitle)}</text>'
    for number, bar in enumerate(panel.bars):
        y = top + HEAD + number * ROW
        base = y + BAR - 3
        length = max(bar.value * scale, 1)
        end = left + max(length, bar.high * scale)
        weight = ' font-weight="600"' if bar.ours else ""
        yield f'<text x="{left - 8}" y="{base}" text-anchor="end"{weight}>'
        yield f"{escape(bar.label)}</text>"
        yield (
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" '
            f'fill="{OURS if bar.ours else OTHERS}"/>'
        )
        middle = y + BAR / 2
        yield (
            f'<path d="M{left + bar.low * scale:.1f} {middle}H{left + bar.high * scale:.1f}" '
            f'stroke="{INK}" stroke-width="1.5" opacity="0.55"/>'
        )
        yield f'<text x="{end + 6:.1f}" y="{base}"{weight}>{escape(bar.text)}</text>'
