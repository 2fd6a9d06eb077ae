"""Writes the sections as one HTML page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from layered_sglang.bench.report.svg import svg
from layered_sglang.bench.report.text import Section
from layered_sglang.bench.table import as_markdown

STYLE = """
body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif;color:#1a1a1a;background:#fff;
 max-width:1080px;margin:0 auto;padding:1.5rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92em}
th,td{padding:.2rem .7rem;border-bottom:1px solid #e8e8e8;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.wide{overflow-x:auto}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:1rem}
.d{color:#777;margin-left:.6em}
figure{margin:1rem 0 0;max-width:720px}figure svg{width:100%;height:auto}
figcaption{color:#555;font-size:.88em}
pre{background:#f5f5f5;padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85em}
""".strip()


def html(title: str, sections: Sequence[Section]) -> str:
    """One file with everything in it; opened from anywhere."""
    parts = [
        "<!doctype html>",
        "<html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [f"<p>{escape(text).replace('`', '')}</p>" for text in section.paragraphs]
        if section.items:
            items = "".join(f"<li>{escape(item)}</li>" for item in section.items)
            parts.append(f"<ul>{items}</ul>")
        if section.cells:
            parts.append(f"<div class='wide'>{_table(section.cells)}</div>")
        if section.charts:
            figures = [
                f"<figure>{svg(chart)}<figcaption>{escape(chart.note)}</figcaption></figure>"
                for chart in section.charts
            ]
            parts.append(f"<div class='charts'>{''.join(figures)}</div>")
        if section.code:
            parts.append(f"<pre>{escape(chr(10).join(section.code))}</pre>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def markdown(title: str, sections: Sequence[Section], pictures: Mapping[str, str]) -> str:
    """The same; ``pictures`` has each chart's file, beside this one."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for text in section.paragraphs:
            lines += [text, ""]
        lines += [f"- {item}" for item in section.items]
        if section.items:
            lines.append("")
        if section.cells:
            lines += [*as_markdown(section.cells), ""]
        for chart in section.charts:
            lines += [f"![{chart.title}]({pictures[chart.name]})", ""]
            if chart.note:
                lines += [f"*{chart.note}*", ""]
        if section.code:
            lines += ["```", *section.code, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in cells[0])
    rows = [
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in cells[1:]
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(text: str) -> str:
    """A cell; what stands behind two spaces is a difference."""
    value, _, difference = escape(text).partition("  ")
    return f"{value}<span class='d'>{difference}</span>" if difference else value
