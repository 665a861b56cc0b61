"""Writes of an append at once where each of them waits for its store, in the order of commits."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from zarrpipe.store.columns import Column
from zarrpipe.store.plan import RowWrite, in_stages

_THREADS = 16


def write_in_stages(columns: Mapping[str, Column], writes: Sequence[RowWrite]) -> None:
    """Carry out writes, those of a stage at once; nothing is still being written on return.

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
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="zarrpipe-write") as pool:
        for stage in in_stages(writes):
            futures = [pool.submit(columns[path].write, start, rows) for path, start, rows in stage]
            wait(futures)
            for future in futures:
                future.result()
