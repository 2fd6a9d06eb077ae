"""Draws a chart as PNG with matplotlib, where that is installed (the extra ``plots``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layered_sglang.bench.report.chart import PALETTE, Chart


def pyplot() -> Any:
    """matplotlib's pyplot without a screen, or None."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        return None
    return plt


def write_png(plt: Any, chart: Chart, path: Path) -> None:
    """Write the chart's picture."""
    figure, axes = plt.subplots(figsize=(7.2, 3.8), dpi=150, layout="constrained")
    try:
        for box in chart.boxes:
            axes.add_patch(
                plt.Rectangle(
                    (box.x0, box.y0),
                    box.x1 - box.x0,
                    box.y1 - box.y0,
                    color=PALETTE[box.colour % len(PALETTE)],
                    alpha=0.25 if box.faint else 1.0,
                    linewidth=0,
                )
            )
        for series in chart.series:
            colour = PALETTE[series.colour % len(PALETTE)]
            xs, ys = zip(*series.points, strict=True)
            axes.plot(xs, ys, color=colour, marker="o" if series.marked else None)
            for label, place in zip(series.labels, series.points, strict=False):
                axes.annotate(
                    label,
                    place,
                    xytext=(5, 4),
                    textcoords="offset points",
                    color=colour,
                    fontsize=8,
                )
        x0, x1, y0, y1 = chart.bounds()
        if chart.x_log:
            axes.set_xscale("log")
        axes.set_xlim(x0, x1)
        axes.set_ylim(y0, y1)
        if chart.x_ticks:
            axes.set_xticks([at for at, _ in chart.x_ticks], [text for _, text in chart.x_ticks])
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        axes.set_title(chart.title, fontsize=10, loc="left")
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        handles = [
            plt.Rectangle((0, 0), 1, 1, color=PALETTE[colour % len(PALETTE)])
            for _, colour in chart.names()
        ]
        if handles:
            axes.legend(handles, [name for name, _ in chart.names()], fontsize=8)
        figure.savefig(path)
    finally:
        plt.close(figure)
