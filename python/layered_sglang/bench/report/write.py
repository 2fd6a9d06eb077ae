"""Writes a report into a benchmark's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from layered_sglang.bench.report.charts import charts
from layered_sglang.bench.report.data import read_results
from layered_sglang.bench.report.page import html, markdown
from layered_sglang.bench.report.png import pyplot, write_png
from layered_sglang.bench.report.svg import svg
from layered_sglang.bench.report.text import sections, tables
from layered_sglang.bench.store import StoreError


def write_picture(folders: Sequence[Path], name: str, path: Path) -> None:
    """Write one of the report's pictures to ``path``: PNG if it ends so, else SVG.

    Raises:
        StoreError: a folder holds no results, there is no such picture, or it cannot be written.
    """
    drawn = {chart.name: chart for chart in charts(read_results(*folders))}
    if name not in drawn:
        raise StoreError(f"{folders[0]} has no picture {name!r}; there are: {', '.join(drawn)}")
    try:
        if path.suffix != ".png":
            path.write_text(svg(drawn[name]), encoding="utf-8")
            return
        plt = pyplot()
        if plt is None:
            raise StoreError(
                "PNG needs matplotlib: pip install 'layered-sglang[plots]', or name an .svg"
            )
        write_png(plt, drawn[name], path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def write_tables(folders: Sequence[Path], path: Path) -> None:
    """Write the report's tables over all cells to ``path``, as Markdown.

    Raises:
        StoreError: a folder holds no results, or ``path`` cannot be written.
    """
    results = read_results(*folders)
    try:
        text = markdown(results.scenario["name"], tables(results), {})
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def write_report(folders: Sequence[Path]) -> list[Path]:
    """Write ``report.html``, ``report.md`` and its pictures in ``pictures/`` into the first folder.

    The pictures are SVG, and PNG too where matplotlib is installed; Markdown then shows the PNG.

    Returns:
        The page, the Markdown file and the pictures' folder.

    Raises:
        StoreError: a folder holds no results, or the first one cannot be written.
    """
    results, folder = read_results(*folders), folders[0]
    drawn = charts(results)
    plt, pictures = pyplot(), folder / "pictures"
    try:
        pictures.mkdir(exist_ok=True)
        shown = {}
        for chart in drawn:
            (pictures / f"{chart.name}.svg").write_text(svg(chart), encoding="utf-8")
            kind = "svg"
            if plt is not None:
                write_png(plt, chart, pictures / f"{chart.name}.png")
                kind = "png"
            shown[chart.name] = f"pictures/{chart.name}.{kind}"
        title, parts = results.scenario["name"], sections(results, drawn)
        page, text = folder / "report.html", folder / "report.md"
        page.write_text(html(title, parts), encoding="utf-8")
        text.write_text(markdown(title, parts, shown), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write into {folder}: {error.strerror or error}") from error
    return [page, text, pictures]
