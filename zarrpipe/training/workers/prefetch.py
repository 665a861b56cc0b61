"""Work on batches that come later: say which samples they need, or read them in a thread."""

import threading
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

import numpy as np

from zarrpipe.data.csr import Int64Array

Item = TypeVar("Item")

_SAMPLES = 1024


def advised(
    batches: Iterator[Int64Array], advise: Callable[[Int64Array], object], ahead: int = 0
) -> Iterator[Int64Array]:
    """The same batches, with word ahead of them, in one call for many.

    Parameters
    ----------
    batches
        Indices of the samples of each batch.
    advise
        Told the indices of the batches that come next, once for each sample.
    ahead
        Samples of which it is told at once, at least 1,024.
    """
    count = max(ahead, _SAMPLES)
    coming = _group(batches, advise, count)
    while coming:
        now, coming = coming, _group(batches, advise, count)
        yield from now


def _group(
    batches: Iterator[Int64Array], advise: Callable[[Int64Array], object], least: int
) -> list[Int64Array]:
    group, count = [], 0
    while count < least and (batch := next(batches, None)) is not None:
        group.append(batch)
        count += len(batch)
    if count:
        advise(np.concatenate(group))
    return group


def read_ahead(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """The same items, of which a thread makes up to `depth` before they are asked for.

    The thread has ended when the iteration has, also where it is left early. What is raised in it
    is raised here, in its turn.
    """
    room, made = threading.Semaphore(depth), SimpleQueue[tuple[bool, Item | BaseException | None]]()
    left = threading.Event()

    def make() -> None:
        try:
            while room.acquire() and not left.is_set():
                made.put((True, next(items)))
        except StopIteration:
            made.put((False, None))
        except BaseException as error:  # noqa: BLE001  raised where the items are used
            made.put((False, error))

    thread = threading.Thread(target=make, name="zarrpipe-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            good, item = made.get()
            if good:
                room.release()
                yield item  # type: ignore[misc]  # an item where it is good
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        left.set()
        room.release()
        thread.join()
