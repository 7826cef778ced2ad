"""A table as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence

from efficientad_jax.reproduction.aggregation import Measured
from efficientad_jax.reproduction.tables import Cell, Column, Table

_TO_LATEX = str.maketrans({"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#"})


def markdown(table: Table) -> str:
    """Two columns a figure, ours and the paper's; '-' where there is none."""
    headings = [""]
    for column in table.columns:
        headings += [f"{column.heading}: ours", "paper"]
    lines = [_row(headings), "|---" + "|---:" * (len(headings) - 1) + "|"]
    lines += [_row([label, *_texts(table.columns, cells)]) for label, cells in table.rows]
    notes = [f"- {note}" for note in table.notes]
    title = f"# Table {table.number}: {table.title}"
    return "\n".join([title, "", *lines, *([""] if notes else []), *notes, ""])


def csv_text(table: Table) -> str:
    """A line a figure; what there is not is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "row",
            "column",
            "ours",
            "ours_deviation",
            "seeds",
            "categories",
            "categories_in_full",
            "paper",
            "paper_deviation",
            "paper_also",
        ]
    )
    for label, cells in table.rows:
        for column, cell in zip(table.columns, cells, strict=True):
            ours = ["", "", "", "", ""] if cell.ours is None else list(cell.ours)
            paper = ["", "", ""] if cell.paper is None else list(cell.paper)
            writer.writerow([label, column.key, *ours, *paper])
    return text.getvalue()


def latex(table: Table) -> str:
    """A `tabular` that needs the package booktabs; title and notes are comments before it."""
    count = len(table.columns)
    comments = [f"Table {table.number}: {table.title}", *table.notes]
    headings = " & ".join(
        rf"\multicolumn{{2}}{{c}}{{{c.heading.translate(_TO_LATEX)}}}" for c in table.columns
    )
    lines = [
        *(f"% {line}" for line in comments),
        rf"\begin{{tabular}}{{l{'rr' * count}}}",
        r"\toprule",
        rf" & {headings} \\",
        " & " + " & ".join(["ours & paper"] * count) + r" \\",
        r"\midrule",
    ]
    for label, cells in table.rows:
        texts = [label, *_texts(table.columns, cells)]
        latex_texts = (t.translate(_TO_LATEX).replace("±", r"$\pm$") for t in texts)
        lines.append(" & ".join("--" if t == "-" else t for t in latex_texts) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _texts(columns: Sequence[Column], cells: Sequence[Cell]) -> list[str]:
    return [
        text
        for column, cell in zip(columns, cells, strict=True)
        for text in (_ours(cell.ours, column.decimals), str(cell.paper or "-"))
    ]


def _ours(figure: Measured | None, decimals: int) -> str:
    if figure is None:
        return "-"
    text = f"{figure.mean:.{decimals}f}"
    if figure.deviation is not None:
        text += f" ± {figure.deviation:.{decimals + 1}f}"
    if figure.categories < figure.of:
        text += f" ({figure.categories}/{figure.of})"
    return text
