"""Progress bars by tqdm, which Lightning brings along; whoever has no Lightning may lack it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE = 2.0  # seconds without a bar


@contextmanager
def progress_bar(
    shown: bool | None, title: str, total: int, *, unit: str = "B", initial: int = 0
) -> Iterator[Callable[[int], object]]:
    """Yield a function that advances a progress bar by a number of units, out of `total`.

    With None, the bar appears after two seconds if there is a terminal and tqdm. With True,
    ModuleNotFoundError is raised without tqdm. `initial` units were done before.
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
        total=total,
        initial=initial,
        desc=title,
        unit=unit,
        unit_scale=unit == "B",
        delay=delay,
        disable=disable,
    ) as bar:
        yield bar.update
