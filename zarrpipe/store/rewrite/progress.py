"""A progress bar for what may take minutes, where there is someone to see it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE = 2.0


@contextmanager
def progress_bar(shown: bool | None, what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Give a function that is to be called with the number of bytes that are done.

    Parameters
    ----------
    shown
        None for a bar on a terminal once it has lasted two seconds, if tqdm is installed; True for
        a bar in any case; False for none.
    what
        Description.
    total
        Bytes to do.

    Raises
    ------
    ModuleNotFoundError
        If a bar is asked for and tqdm is not installed.
    """
    if shown is False:
        yield int
        return
    try:
        from tqdm import tqdm  # noqa: PLC0415  optional
    except ImportError as error:
        if shown:
            raise ModuleNotFoundError(
                "progress=True needs tqdm: install it with pip install tqdm, or leave progress out"
            ) from error
        yield int
        return
    delay, disable = (0.0, False) if shown else (_PATIENCE, None)
    with tqdm(
        total=total, desc=what, unit="B", unit_scale=True, delay=delay, disable=disable
    ) as bar:
        yield bar.update
