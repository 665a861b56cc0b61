"""Work on a far store at once where each piece waits for it, and writes in the order of commits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

from zarrpipe.store.write.array_writer import ArrayWriter
from zarrpipe.store.write.plan import RowWrite, in_stages

_THREADS = 16

Result = TypeVar("Result")


def run_concurrently(
    tasks: Iterable[Callable[[], Result]], threads: ThreadPoolExecutor | None = None
) -> list[Result]:
    """Results of independent tasks, in order; none of them is still going on at return.

    Parameters
    ----------
    tasks
        What to do.
    threads
        Who does it; by default threads that end with the tasks.

    Raises
    ------
    BaseException
        The first of those that the tasks raised.
    """
    if threads is None:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="zarrpipe-write") as pool:
            return run_concurrently(tasks, pool)
    futures = [threads.submit(task) for task in tasks]
    wait(futures)
    return [future.result() for future in futures]


def write_in_stages(columns: Mapping[str, ArrayWriter], writes: Sequence[RowWrite]) -> None:
    """Carry out writes, those of a stage at once; nothing is still being written at return.

    Parameters
    ----------
    columns
        By path.
    writes
        In commit order.

    Raises
    ------
    BaseException
        The first of those that the writes of a stage raised; no later stage was begun.
    """
    for stage in in_stages(writes):
        run_concurrently(partial(columns[path].write, start, rows) for path, start, rows in stage)
