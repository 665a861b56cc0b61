"""Tables of text for terminals and pipes, and of fields for notebooks."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

_MOST_ELEMENTS = 12


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

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return html_table(self.title, self.header, self.rows, numbers=self.numbers)


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


def html_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    facts: str = "",
    numbers: Collection[int] = (),
) -> str:
    """Table with a title and a line of facts; all texts are escaped, `numbers` aligned right."""

    def cells(tag: str, row: Sequence[object]) -> str:
        sides = ("right" if place in numbers else "left" for place in range(len(row)))
        return "".join(
            f'<{tag} style="text-align: {side}">{escape(str(value))}</{tag}>'
            for side, value in zip(sides, row, strict=True)
        )

    head = cells("th", columns)
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    header = f"<thead><tr>{head}</tr></thead>" if head else ""
    table = f"<table>{header}<tbody>{body}</tbody></table>" if head or body else ""
    lines = "".join(f"<p>{escape(line)}</p>" for line in (title, facts) if line)
    return f"<div>{lines}{table}</div>"


def html_tables(tables: Iterable[Table]) -> str:
    """Tables below each other."""
    return f"<div>{''.join(table._repr_html_() for table in tables)}</div>"


def printable(text: str) -> str:
    r"""Replace the control characters that a name may have, which a terminal would obey.

    >>> print(printable("run\x1b[2J of Müller"))
    run?[2J of Müller
    """
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def elements_text(counts: Mapping[str, int]) -> str:
    """Atoms by element in a line, the most frequent first.

    >>> elements_text({"O": 1, "H": 1200})
    'H 1,200, O 1'
    """
    order = sorted(counts, key=lambda symbol: -counts[symbol])
    more = f" and {len(order) - _MOST_ELEMENTS} more" if len(order) > _MOST_ELEMENTS else ""
    return ", ".join(f"{symbol} {counts[symbol]:,}" for symbol in order[:_MOST_ELEMENTS]) + more


def bytes_text(value: int | None) -> str:
    """Bytes with a unit.

    >>> bytes_text(2_500_000), bytes_text(999_999), bytes_text(None)
    ('2.5 MB', '1 MB', '-')
    """
    if value is None:
        return "-"
    size, units = float(value), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"
