"""Tables of text for terminals and pipes, and of fields for notebooks."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """Cells of text under a header, which may be empty; `numbers` are columns to align right.

    Examples
    --------
    >>> print(Table(("element", "atoms"), (("H", "12"), ("O", "6")), numbers={1}, title="atoms:"))
    atoms:
      element  atoms
      H           12
      O            6
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: Collection[int] = ()
    title: str = ""

    def __str__(self) -> str:
        lines = text_table([self.header] if self.header else [], self.rows, self.numbers)
        return "\n".join([self.title, *(f"  {line}" for line in lines)] if self.title else lines)


def text_table(
    header: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()
) -> list[str]:
    """Lines of aligned cells; columns in `numbers` are aligned right."""
    every = [*header, *rows]
    wide = [max(map(len, column)) for column in zip(*every, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, wide, strict=True))
        ).rstrip()
        for row in every
    ]


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Table with a title; all texts are escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(value))}</td>' for value in row)}</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div><p>{escape(title)}</p>{table}</div>"
