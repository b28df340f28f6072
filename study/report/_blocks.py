"""What a report is made of, before it is HTML or Markdown: plain text, escaped where it is printed."""

import base64
from dataclasses import dataclass
from typing import ClassVar

NARROWEST = 13
"""Letters: a text column is never narrower, unless all that is in it is shorter."""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Heading:
    """Within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, slots=True)
class Points:
    """A list; each point may start with a term that stands out."""

    kind: ClassVar[str] = "points"
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Commands or settings, to be copied."""

    kind: ClassVar[str] = "code"
    text: str
    language: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns."""

    kind: ClassVar[str] = "table"
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    """How many columns from the left are text; the rest are numbers, aligned to the right."""
    strong: tuple[int, ...] = ()
    """Rows that stand out."""
    theirs: int = 0
    """How many columns at the right are the paper's."""

    @property
    def letters(self) -> tuple[int, ...]:
        """For how many letters each text column keeps room: its longest cell, or NARROWEST where that is longer."""
        columns = list(zip(*self.rows, strict=True))[: self.text_columns]
        return tuple(min(max(map(len, column)), NARROWEST) for column in columns)


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as PNG, with what it shows in words."""

    kind: ClassVar[str] = "picture"
    name: str
    title: str
    caption: str
    """How to read it."""
    alternative: str
    """What is to be seen in it, for who cannot see it."""
    png: bytes
    narrow: bytes
    """The same, drawn for a telephone."""

    @property
    def base64(self) -> str:
        """For a page that carries its pictures."""
        return base64.b64encode(self.png).decode("ascii")

    @property
    def narrow_base64(self) -> str:
        """Likewise."""
        return base64.b64encode(self.narrow).decode("ascii")


Block = Text | Heading | Points | Code | Table | Picture


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """The answer, before everything else."""

    name: str
    about: str
    """What the study is, in a line."""
    banners: tuple[str, ...]
    """What must be read before the answer."""
    question: str
    headline: str
    sentences: tuple[str, ...]
    command: Code
    """What to run next; empty where nothing is left to do."""
    warnings: tuple[str, ...]
    best: tuple[str, str]
    """The best settings: a headline, and how they were chosen."""
