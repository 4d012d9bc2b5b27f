"""report.md and report.html of an evaluation: one structure, written twice."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from im3d.core.storage import write_bytes
from im3d_lab.evaluate.ablation import Variant
from im3d_lab.evaluate.reporting.plots import plot_objects, plot_times
from im3d_lab.evaluate.reporting.tables import HEADLINE, TABLES, Column, Row, done, summaries

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; } h3 { font-size: 1em; margin: 1.6em 0 .3em; }
table { border-collapse: collapse; margin: .6em 0; display: block; overflow-x: auto; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } th { background: #f4f4f4; font-weight: 600; }
.facts td { text-align: left; }
img { max-width: 100%; height: auto; } code { background: #f4f4f4; padding: .1em .3em; }
.note { color: #555; } .failed { color: #a00; }
"""

READING = (
    "PSNR, SSIM and the perceptual distance compare pictures on white; PSNR on the object only counts pixels that "
    "either picture covers. Distances of surfaces are per cent of the object's longest side, over what is visible "
    "from outside. Spread is the standard deviation over the objects. New cameras lie half a step between the views of "
    "a 16-view orbit, at the orbit's and at other elevations."
)


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column is left-aligned."""

    head: list[str]
    body: list[list[str]]


@dataclass
class Section:
    """A heading with content: paragraphs (str), tables and pictures (Path relative to the report)."""

    title: str
    level: int = 2
    content: list[str | Table | Path] = field(default_factory=list)


def write_report(folder: Path, facts: dict[str, Any], groups: Sequence[tuple[Variant, Sequence[Row]]]) -> None:
    """Writes report.md, report.html and their figures.

    Args:
        folder: Of the evaluation; the rows' own folders lie in it, under the variant's name.
        facts: Text by label, stated at the top: machine, date, command, weights.
        groups: Every variant with the rows of its objects.
    """
    sections = _sections(folder, facts, groups)
    title = "IM-3D evaluation"
    write_bytes(folder / "report.md", _markdown(title, sections).encode("utf-8", "backslashreplace"))
    write_bytes(folder / "report.html", _html(title, sections).encode("utf-8", "backslashreplace"))


def _sections(folder: Path, facts: dict[str, Any], groups: Sequence[tuple[Variant, Sequence[Row]]]) -> list[Section]:
    first = Section("What was run", content=[Table(["", ""], [[k, str(v)] for k, v in facts.items()]), READING])
    sections = [first]
    titled = [(variant.title, rows) for variant, rows in groups]
    if any(done(rows) for _, rows in groups):
        plot_objects(folder / "objects.png", titled)
        overview = Section("Overview", content=[_variant_table(groups), Path("objects.png")])
        overview.content.append("Every dot is an object, the bar is the mean; the arrow points to the better side.")
        sections.append(overview)
    for variant, rows in groups:
        sections += _variant_sections(folder, variant, rows, alone=len(groups) == 1)
    return sections


def _variant_sections(folder: Path, variant: Variant, rows: Sequence[Row], alone: bool) -> list[Section]:
    prefix = "" if alone else f"{variant.title}: "
    finished = done(rows)
    sections = []
    if finished:
        summary = Section(f"{prefix}mean, spread and worst case")
        for title, columns in TABLES.items():
            body = [
                [s.column.title, *map(s.column.text, (s.mean, s.spread, s.worst)), s.worst_object]
                for s in summaries(finished, columns)
            ]
            if body:
                summary.content += [f"**{title}**", Table(["", "mean", "spread", "worst", "worst object"], body)]
        times = Path(f"times-{variant.name}.png")
        plot_times(folder / times, finished)
        summary.content.append(times)
        sections.append(summary)
    objects = Section(f"{prefix}objects", content=[_object_table(rows)])
    sections.append(objects)
    for row in rows:
        about = f"{row['id']}, {row['licence'] or 'licence not stated'}, elevation {row['elevation_deg']:g}°"
        part = Section(str(row["name"]), level=3, content=[about])
        if row["status"] == "done":
            part.content.append(Path(variant.name) / row["folder"] / "strip.png")
        else:
            part.content.append(f"Failed: {row['error']}")
        sections.append(part)
    return sections


def _variant_table(groups: Sequence[tuple[Variant, Sequence[Row]]]) -> Table:
    columns = _measured_columns([row for _, rows in groups for row in rows])
    body = []
    for variant, rows in groups:
        finished = done(rows)
        means = {s.column.path: s for s in summaries(finished, columns)}
        cells = [c.text(means[c.path].mean if c.path in means else None) for c in columns]
        body.append([variant.title, f"{len(finished)}/{len(rows)}", *cells])
    return Table(["mean of", "objects", *(c.title for c in columns)], body)


def _object_table(rows: Sequence[Row]) -> Table:
    columns = _measured_columns(rows)
    body = [[str(row["name"]), *(c.text(c.value(row)) for c in columns)] for row in rows]
    return Table(["object", *(c.title for c in columns)], body)


def _measured_columns(rows: Sequence[Row]) -> list[Column]:
    """The headline's columns for which some row has a number."""
    return [column for column in HEADLINE if any(column.value(row) is not None for row in rows)]


def _markdown(title: str, sections: Sequence[Section]) -> str:
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"{'#' * section.level} {section.title}", ""]
        for part in section.content:
            if isinstance(part, Table):
                lines.append("| " + " | ".join(part.head) + " |")
                lines.append("|" + "---|" + "---:|" * (len(part.head) - 1))
                lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in part.body]
            else:
                lines.append(f"![{section.title}]({part.as_posix()})" if isinstance(part, Path) else part)
            lines.append("")
    return "\n".join(lines)


def _html(title: str, sections: Sequence[Section]) -> str:
    parts = [f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"]
    parts.append("<meta name='viewport' content='width=device-width'>")
    parts.append(f"<h1>{title}</h1>")
    for section in sections:
        parts.append(f"<h{section.level}>{html.escape(section.title)}</h{section.level}>")
        for part in section.content:
            if isinstance(part, Table):
                parts.append(_html_table(part))
            elif isinstance(part, Path):
                parts.append(
                    f"<img loading='lazy' src='{html.escape(part.as_posix())}' alt='{html.escape(section.title)}'>"
                )
            elif part.startswith("**"):
                parts.append(f"<h3>{html.escape(part.strip('*'))}</h3>")
            else:
                css = "failed" if part.startswith("Failed:") else "note"
                parts.append(f"<p class='{css}'>{html.escape(part)}</p>")
    return "\n".join(parts) + "\n"


def _html_table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head = line(table.head, "th") if any(table.head) else ""
    kind = "" if head else " class='facts'"
    return f"<table{kind}>" + head + "".join(line(row, "td") for row in table.body) + "</table>"
