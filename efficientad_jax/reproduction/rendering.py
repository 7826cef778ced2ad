"""Formats a table as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from efficientad_jax.errors import InputError
from efficientad_jax.reproduction.aggregation import LOCO_KINDS, Measured, Results
from efficientad_jax.reproduction.tables import Cell, Table

_TO_LATEX = str.maketrans({"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$"})


def markdown(table: Table) -> str:
    """Formats our results and, in columns where it has some, the paper's; '-' if there is none."""
    headings = [""]
    for column, has_paper in zip(table.columns, _has_paper(table), strict=True):
        headings += [f"{column.heading}: ours", "paper"] if has_paper else [column.heading]
    lines = [_row(headings), "|---" + "|---:" * (len(headings) - 1) + "|"]
    lines += [_row([label, *_texts(table, cells)]) for label, cells in table.rows]
    notes = [f"- {note}" for note in table.notes]
    title = f"# Table {table.number}: {table.title}"
    return "\n".join([title, "", *lines, *([""] if notes else []), *notes, ""])


def csv_text(table: Table) -> str:
    """Formats a line per cell; missing results are empty."""
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


def read_cells(file: Path) -> dict[tuple[str, str], Measured]:
    """Reads our results from a file of `csv_text`, by row and key of the column.

    Raises:
      InputError: the file cannot be read or has another format.
    """
    try:
        with file.open(newline="") as text:
            return {
                (row["row"], row["column"]): Measured(
                    float(row["ours"]),
                    float(row["ours_deviation"]) if row["ours_deviation"] else None,
                    *(int(row[name]) for name in ("seeds", "categories", "categories_in_full")),
                )
                for row in csv.DictReader(text)
                if row["ours"]
            }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"table {file}: cannot be read ({error!r}), expected the .csv of a table that "
            "`experiments.reproduce` writes in a checkout"
        ) from error


def runs_csv(results: Results) -> str:
    """Formats a line per run, with its metrics in [0, 1] as in `metrics.json`."""
    names = ["image_auroc", "image_average_precision", "pixel_auroc", "au_pro", "au_spro"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "category", "size", "variant", "seed", *names, *LOCO_KINDS])
    for run, metrics in results.items():
        detector = metrics["detector"]
        values = [detector.get(name) for name in names]
        kinds = [detector["image_auroc_by_defect"].get(kind) for kind in LOCO_KINDS.values()]
        writer.writerow([*run._replace(variant=run.variant.name), *values, *kinds])  # pyright: ignore
    return text.getvalue()


def latex(table: Table) -> str:
    """Formats a `tabular`, which needs the package booktabs; title and notes are comments."""
    titles, whose = "", ""
    for column, has_paper in zip(table.columns, _has_paper(table), strict=True):
        span = 2 if has_paper else 1
        titles += rf" & \multicolumn{{{span}}}{{c}}{{{column.heading.translate(_TO_LATEX)}}}"
        whose += " & ours & paper" if has_paper else " & ours"
    lines = [
        *(f"% {line}" for line in (f"Table {table.number}: {table.title}", *table.notes)),
        rf"\begin{{tabular}}{{l{'r' * (whose.count('&'))}}}",
        r"\toprule",
        rf"{titles} \\",
        rf"{whose} \\",
        r"\midrule",
    ]
    for label, cells in table.rows:
        texts = [text.translate(_TO_LATEX) for text in (label, *_texts(table, cells))]
        lines.append(" & ".join("--" if text == "-" else text for text in texts) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _has_paper(table: Table) -> list[bool]:
    """Whether the paper has results in each column."""
    return [
        any(cells[i].paper is not None for _, cells in table.rows)
        for i in range(len(table.columns))
    ]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _texts(table: Table, cells: Sequence[Cell]) -> list[str]:
    texts = []
    for column, cell, has_paper in zip(table.columns, cells, _has_paper(table), strict=True):
        texts.append(_ours(cell.ours, column.decimals))
        if has_paper:
            texts.append(str(cell.paper or "-"))
    return texts


def _ours(result: Measured | None, decimals: int) -> str:
    if result is None:
        return "-"
    text = f"{result.mean:.{decimals}f}"
    if result.deviation is not None:
        text += f" ± {result.deviation:.{decimals + 1}f}"
    if result.categories < result.all_categories:
        text += f" ({result.categories}/{result.all_categories})"
    return text
