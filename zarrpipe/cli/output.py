"""What commands print: results on standard output, all else on standard error.

A reader that closes its end of a pipe early, as ``head`` does, is no error: the rest is not shown,
and the command ends as it would have.
"""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from zarrpipe.data.tables import Table, printable


def report(message: str) -> None:
    """Print a line to standard error."""
    print(f"zarrpipe: {message}", file=sys.stderr)


def show(facts: Mapping[str, Any], text: object, *, as_json: bool) -> None:
    """Print `facts` as JSON, or else `text`, in which tables are drawn on a terminal."""
    with _reader_may_leave():
        if as_json:
            print(json.dumps(plain(facts), indent=2))
        elif sys.stdout.isatty():
            _draw(text if isinstance(text, list) else [text])
        else:
            print(*(text if isinstance(text, list) else [text]), sep="\n")


def line(text: str) -> bool:
    """Print a line at once; False if the reader of a pipe has left."""
    left = True
    with _reader_may_leave():
        print(text, flush=True)
        left = False
    return not left


def flush() -> None:
    """Write what waits in the buffer of standard output."""
    with _reader_may_leave():
        sys.stdout.flush()


def plain(value: Any) -> Any:
    """Value of JSON's kinds: numbers that are not finite become null, keys become strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return [plain(one) for one in value]


def _draw(parts: Iterable[object]) -> None:
    """Print tables and texts to a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    for part in parts:
        if not isinstance(part, Table):
            lines = map(printable, str(part).split("\n"))
            console.print("\n".join(lines), markup=False, soft_wrap=True)
            continue
        drawn = RichTable(
            title=Text(printable(part.title)) if part.title else None,
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            show_header=bool(part.header),
            show_edge=False,
        )
        width = len(part.header) or len(part.rows[0])
        for place, name in enumerate(part.header or [""] * width):
            drawn.add_column(
                Text(printable(name).replace(" (", "\n(")),  # the unit on a line of its own
                justify="right" if place in part.numbers else "left",
                overflow="fold",
            )
        for row in part.rows:
            drawn.add_row(*(Text(printable(cell)) for cell in row))
        console.print(drawn)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Let further output go nowhere once the reader of a pipe has left."""
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
