"""Draws a chart as SVG text that stands by itself and can be put into a page."""

from __future__ import annotations

import math
from html import escape

from layered_sglang.bench.report.chart import PALETTE, Chart, log_ticks, number, ticks

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 68, 16, 58, 46
LEGEND_ROW = 17
FONT = "font-family='system-ui,-apple-system,Segoe UI,sans-serif'"


def svg(chart: Chart) -> str:
    """The chart as an ``<svg>`` element."""
    x0, x1, y0, y1 = chart.bounds()
    legend, rows = _legend(chart)
    top = TOP + LEGEND_ROW * (rows - 1)
    full = HEIGHT + top - TOP
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(value: float) -> float:
        if chart.x_log:
            return LEFT + width * math.log(value / x0) / math.log(x1 / x0)
        return LEFT + width * (value - x0) / (x1 - x0)

    def y(value: float) -> float:
        return top + height * (1 - (value - y0) / (y1 - y0))

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {full}' role='img' "
        f"aria-label='{escape(chart.title, quote=True)}' font-size='12' {FONT}>",
        f"<rect width='{WIDTH}' height='{full}' fill='#fff'/>",
        _text(LEFT, 20, chart.title, "font-weight='600' font-size='14'"),
    ]
    parts += legend
    marks = chart.x_ticks or [
        (value, number(value)) for value in (log_ticks if chart.x_log else ticks)(x0, x1)
    ]
    for value, text in marks:
        at = x(value)
        if not chart.x_ticks:
            parts.append(_line(at, top, at, top + height, "#e4e4e4"))
        parts.append(_text(at, top + height + 17, text, "text-anchor='middle' fill='#444'"))
    for value in ticks(y0, y1):
        at = y(value)
        parts.append(_line(LEFT, at, LEFT + width, at, "#e4e4e4"))
        parts.append(_text(LEFT - 7, at + 4, number(value), "text-anchor='end' fill='#444'"))
    for box in chart.boxes:
        parts.append(
            f"<rect x='{x(box.x0):.1f}' y='{y(box.y1):.1f}' "
            f"width='{max(0.4, x(box.x1) - x(box.x0)):.1f}' height='{y(box.y0) - y(box.y1):.1f}' "
            f"fill='{PALETTE[box.colour % len(PALETTE)]}'"
            + (" fill-opacity='0.25'" if box.faint else "")
            + f">{_title(box.text)}</rect>"
        )
    for series in chart.series:
        colour = PALETTE[series.colour % len(PALETTE)]
        points = [(x(a), y(b)) for a, b in series.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        for i, (a, b) in enumerate(points if series.marked else ()):
            label = series.labels[i] if i < len(series.labels) else ""
            told = f"{series.name} {label}: {number(series.points[i][0])}, {number(series.points[i][1])}"
            parts.append(
                f"<circle cx='{a:.1f}' cy='{b:.1f}' r='4.5' fill='{colour}'>{_title(told)}</circle>"
            )
            if label:
                end, dx = ("text-anchor='end' ", -7) if a > LEFT + 0.85 * width else ("", 7)
                style = f"{end}fill='{colour}' font-size='11'"
                parts.append(_text(a + dx, b - 6, label, style))
    parts.append(_line(LEFT, top + height, LEFT + width, top + height, "#888"))
    parts.append(_line(LEFT, top, LEFT, top + height, "#888"))
    parts.append(_text(LEFT + width / 2, full - 8, chart.x_label, "text-anchor='middle'"))
    middle = top + height / 2
    parts.append(
        _text(
            15, middle, chart.y_label, f"text-anchor='middle' transform='rotate(-90 15 {middle})'"
        )
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(chart: Chart) -> tuple[list[str], int]:
    """The legend, and in how many rows."""
    parts, at, rows = [], float(LEFT), 1
    for name, colour in chart.names():
        width = 34 + 6.6 * len(name)
        if at + width > WIDTH and at > LEFT:
            at, rows = float(LEFT), rows + 1
        y = 31 + LEGEND_ROW * (rows - 1)
        fill = PALETTE[colour % len(PALETTE)]
        parts.append(f"<rect x='{at:.0f}' y='{y}' width='12' height='12' fill='{fill}'/>")
        parts.append(_text(at + 17, y + 10, name, "fill='#222'"))
        at += width
    return parts, rows


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {attributes}>{escape(text)}</text>"


def _line(x0: float, y0: float, x1: float, y1: float, colour: str) -> str:
    return f"<line x1='{x0:.1f}' y1='{y0:.1f}' x2='{x1:.1f}' y2='{y1:.1f}' stroke='{colour}'/>"


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
