"""Blocks -> HTML and Markdown, with everything from data or users escaped."""

import re
import unicodedata
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from study.report._blocks import Code, Picture, Section, Table, Top

WIDEST_CELL = 60
"""Letters up to which Markdown's columns are filled to one width, for reading in a terminal."""


def html_page(top: Top, sections: Sequence[Section]) -> str:
    """The page that carries its pictures and needs nothing else."""
    environment = Environment(
        loader=PackageLoader("study"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(top=top, sections=sections)


def markdown_page(top: Top, sections: Sequence[Section]) -> str:
    """The same as Markdown, with its pictures beside it."""
    return markdown_environment().get_template("report.md.jinja").render(top=top, sections=sections)


def markdown_environment() -> Environment:
    """Templates for Markdown: every value is escaped, but what is marked as Markup."""
    environment = Environment(
        loader=PackageLoader("study"),
        autoescape=False,  # that is HTML's; Markdown's own is in finalize
        finalize=markdown_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"table": markdown_table, "picture": markdown_picture, "code": markdown_code}
    return environment


def markdown_text(text: object) -> str:
    """Text that Markdown prints as it is, on one line."""
    if isinstance(text, Markup):
        return text
    # A list, a heading or a rule would start with these.
    return re.sub(r"^([#+-]|\d+\.)(?= |$)", r"\\\1", within_line(text))


def within_line(text: object) -> str:
    """Text that Markdown prints as it is, where something stands before it in its line."""
    if isinstance(text, Markup):
        return text
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|$])", r"\\\1", line)


def markdown_table(table: Table) -> Markup:
    """A table whose columns are as wide as what is in them, so that it can be read without being rendered."""
    rows = [[within_line(cell) for cell in row] for row in (table.header, *table.rows)]
    for i in table.strong:
        rows[i + 1] = [f"**{cell}**" if cell else "" for cell in rows[i + 1]]
    widths = [min(WIDEST_CELL, max(3, *map(columns, column))) for column in zip(*rows, strict=True)]
    rule = ["-" * w if i < table.text_columns else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            fill = " " * (width - columns(cell))
            cells.append(cell + fill if i < table.text_columns else fill + cell)
        lines.append(f"| {' | '.join(cells)} |")
    return Markup("\n".join(lines))


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: two for a wide letter, none for a mark."""
    seen = [c for c in text if not unicodedata.combining(c) and unicodedata.category(c) != "Cf"]
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in seen)


def markdown_picture(picture: Picture) -> Markup:
    """A figure by its file, and its caption."""
    # The page's alternative text would fill a screen; what it says is in the tables.
    title = markdown_text(picture.title)
    return Markup(f"![{title}](figures/{picture.name}.png)\n\n*{title}.* {markdown_text(picture.caption)}")


def markdown_code(code: Code) -> Markup:
    """A block of code: everything in it is as it is but its end, which it may not hold."""
    return Markup(f"```{code.language}\n" + code.text.replace("```", "'''").rstrip() + "\n```")
