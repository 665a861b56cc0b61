"""Facts on a terminal, by rich."""

import time
from typing import TYPE_CHECKING, Literal

from zarrpipe.data.tables import bytes_text, printable
from zarrpipe.watch import texts
from zarrpipe.watch.facts import SILENT, Facts, RunFacts, State, StoreFacts

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_STYLES = {State.RUNNING: "green", State.SILENT: "yellow", State.ENDED: "blue"}


def view(facts: Facts, places: str) -> "RenderableType":
    """What is shown of the facts: a table of stores, one of runs, one of their errors."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    began = time.strftime("%H:%M:%S", time.localtime(facts.began))
    now = time.strftime("%H:%M:%S", time.localtime(facts.time))
    title = Text(printable(f"{places}, {now}, since {began}"), style="bold")
    title.append(f", {facts.processor_share:.1%} of a core; Ctrl-C ends", style="dim")
    parts: list[RenderableType] = [title]
    if facts.stores:
        parts += ["", _stores(facts)]
    if facts.runs:
        parts += ["", _runs(facts)]
    if any(run.errors or run.loss for run in facts.runs):
        parts += ["", _errors(facts)]
    if any(run.state is State.SILENT for run in facts.runs):
        parts.append(Text(SILENT, style=_STYLES[State.SILENT]))
    parts += [Text(printable(problem), style="red") for problem in _problems(facts)]
    parts += [Text(printable(note), style="yellow") for note in facts.notes]
    return Group(*parts)


def _problems(facts: Facts) -> list[str]:
    """Places that cannot be read, and why."""
    stores = [(one.store, one.problem) for one in facts.stores]
    runs = [(one.run, one.problem) for one in facts.runs]
    return [f"{texts.short(place)}: {problem}" for place, problem in [*stores, *runs] if problem]


def _stores(facts: Facts) -> "Table":
    table = _table("store", "samples", "samples/s", "mean/s", "atoms", "round", "disk", "free")
    for name in ("writer", "last append"):
        table.add_column(name, no_wrap=True)
    for store in facts.stores:
        style = "dim" if store.problem else None
        table.add_row(*_cells(*_store_cells(store, facts.time)), style=style)
    return table


def _store_cells(store: StoreFacts, now: float) -> tuple[str, ...]:
    return (
        texts.short(store.store),
        f"{store.samples:,}",
        texts.rate(store.samples_per_s),
        texts.rate(store.samples_per_s_mean),
        f"{store.atoms:,}",
        texts.round_text(store),
        bytes_text(store.bytes_stored),
        bytes_text(store.bytes_free),
        texts.writer_text(store),
        texts.ago(store.last_append, now),
    )


def _runs(facts: Facts) -> "Table":
    from rich.text import Text  # noqa: PLC0415

    table = _table("run", "epoch", "step", "N", "samples/s", "wait", "learning rate")
    for name in ("last line", "state"):
        table.add_column(name, no_wrap=True)
    for run in facts.runs:
        state = Text(str(run.state), style=_STYLES.get(run.state, "dim"))
        table.add_row(*_cells(*_run_cells(run, facts.time)), state)
    return table


def _run_cells(run: RunFacts, now: float) -> tuple[str, ...]:
    epoch = f"round {run.round}" if run.round is not None else texts.count(run.epoch)
    limit = "" if run.max_steps is None else f" of {run.max_steps:,}"
    return (
        texts.short(run.run),
        epoch,
        texts.count(run.step) + limit,
        texts.count(run.num_samples),
        texts.rate(run.samples_per_s),
        texts.percent(run.wait),
        texts.figure(run.learning_rate),
        texts.ago(run.last_line, now),
    )


def _errors(facts: Facts) -> "Table":
    table = _table("run", "last", "best")
    table.add_column("unit")
    table.add_column("trend", no_wrap=True)
    table.columns[0].header = "error"
    for run in facts.runs:
        for metric in (*((run.loss,) if run.loss else ()), *run.errors):
            several = f"{texts.short(run.run)}: " if len(facts.runs) > 1 else ""
            last, best = texts.figure(metric.last), texts.figure(metric.best)
            cells = (several + metric.label, last, best, metric.unit, texts.trend(metric))
            table.add_row(*_cells(*cells))
    return table


def _table(*names: str) -> "Table":
    """Table whose first column is text and the others numbers."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, name in enumerate(names):
        number = place > 0
        side: Literal["left", "right"] = "right" if number else "left"
        table.add_column(name, justify=side, overflow="fold", no_wrap=number)
    return table


def _cells(*cells: str) -> "list[Text]":
    """Cells that are shown as they are: names are no markup and move no cursor."""
    from rich.text import Text  # noqa: PLC0415

    return [Text(printable(cell)) for cell in cells]
