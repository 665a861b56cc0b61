"""The command ``bench``: how fast a store can be read on this machine."""

from typing import Annotated

import typer

from zarrpipe.cli.exit_codes import GOOD
from zarrpipe.cli.options import Json, Store
from zarrpipe.cli.output import show


def bench(
    store: Store,
    *,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N")] = 32,
    workers: Annotated[
        int,
        typer.Option("--workers", min=0, metavar="N", help="Processes of the second loader."),
    ] = 2,
    step_ms: Annotated[
        float,
        typer.Option("--step-ms", metavar="MS", help="Time that a model takes after each batch."),
    ] = 10.0,
    busy: Annotated[
        bool, typer.Option("--busy", help="The model computes on the CPU, instead of waiting.")
    ] = False,
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="S", help="Time of all readings together."),
    ] = 20.0,
    repeats: Annotated[int, typer.Option("--repeats", min=1, metavar="N")] = 3,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="Seed of the order of the samples.")
    ] = 0,
    as_json: Json = False,
) -> int:
    """Measure how fast training can read a store here.

    Shuffled batches of the loader: cold (its files dropped from memory) and warm, in process and
    with workers, alone and for a model that takes a time after each batch: how many times as fast
    as the model they come, and how long it waits.
    """
    from zarrpipe.training.bench import measure

    found = measure(
        store,
        batch_size=batch_size,
        num_workers=workers,
        step_ms=step_ms,
        busy=busy,
        seconds=seconds,
        repeats=repeats,
        seed=seed,
    )
    show(found.to_dict(), found.tables(), as_json=as_json)
    return GOOD
