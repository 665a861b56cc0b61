"""The command ``watch``: what grows now."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from zarrpipe.cli.exit_codes import GOOD
from zarrpipe.cli.options import Json
from zarrpipe.cli.output import line, plain, report, show

if TYPE_CHECKING:
    from zarrpipe.watch.facts import Facts


def watch(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Stores, directories of runs, or folders that hold some, also later.",
            show_default=False,
        ),
    ],
    *,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, metavar="S", help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look twice, an interval apart, and end.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show the same as a page in a browser of this machine.")
    ] = False,
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, metavar="PORT", help="Of --serve; 0: any free."),
    ] = 8765,
    as_json: Json = False,
) -> int:
    """Watch stores and training runs while they grow.

    Samples and samples a second, rounds, disk and writers of stores; epochs, steps, N, wait for
    data and errors of runs, by their metrics.csv. It locks and writes nothing. On a terminal it is
    a view that changes; in a pipe it prints a line, with --json an object, each interval. Ctrl-C
    ends it.
    """
    if once and serve:
        raise typer.BadParameter("it goes on, and --once ends: give one", param_hint="'--serve'")
    with contextlib.suppress(KeyboardInterrupt), ExitStack() as stack:
        from zarrpipe.watch.watcher import Watcher

        watcher = Watcher(places)
        stack.callback(watcher.close)
        if once:
            watcher.look()
            time.sleep(interval)
            facts = watcher.look()
            show(facts.to_dict(), _line(facts), as_json=as_json)
            return GOOD
        showing: list[Callable[[Facts], bool]] = []
        if serve:
            showing.append(stack.enter_context(_page(port, interval)))
        if as_json:
            showing.append(lambda facts: line(json.dumps(plain(facts.to_dict()))))
        elif sys.stdout.isatty():
            showing.append(stack.enter_context(_live(places)))
        else:
            showing.append(lambda facts: line(_line(facts)))
        due, going = time.monotonic(), True
        while going:
            facts = watcher.look()
            shown = [one(facts) for one in showing]
            going, due = all(shown), max(due + interval, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()) if going else 0.0)
    return GOOD


def _line(facts: "Facts") -> str:
    from zarrpipe.watch.texts import line as text

    return text(facts, time.strftime("%H:%M:%S", time.localtime(facts.time)))


@contextmanager
def _page(port: int, interval: float) -> "Iterator[Callable[[Facts], bool]]":
    """Serve facts to browsers."""
    from zarrpipe.watch.page import PageServer

    with PageServer(port) as server:
        report(f"{server.url} shows it in a browser of this machine")

        def shown(facts: "Facts") -> bool:
            server.show(plain({**facts.to_dict(curves=True), "interval": interval}))
            return True

        yield shown


@contextmanager
def _live(places: list[str]) -> "Iterator[Callable[[Facts], bool]]":
    """Show facts on a terminal, in place of those before."""
    from rich.console import Console
    from rich.live import Live

    from zarrpipe.watch.terminal import view

    with Live(console=Console(highlight=False), auto_refresh=False) as live:

        def shown(facts: "Facts") -> bool:
            live.update(view(facts, ", ".join(places)), refresh=True)
            return True

        yield shown
