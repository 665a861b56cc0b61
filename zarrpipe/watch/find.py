"""Which stores and logs there are under the paths that are to be watched."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zarrpipe.errors import ArgumentError, ZarrPipeError
from zarrpipe.store.backend.parts import parts
from zarrpipe.store.format.layout import ATOMS_PTR

LOG = "metrics.csv"

_DEPTH = 5
_MOST_FOLDERS = 5000
_INSIDE_OF_RUNS = frozenset({"checkpoints", "tensorboard"})


@dataclass(frozen=True)
class Found:
    """Places of stores, and logs of runs; `cut_short` if there were too many folders to look at."""

    stores: tuple[str, ...] = ()
    logs: tuple[Path, ...] = ()
    cut_short: bool = False


def check_places(places: Sequence[str]) -> None:
    """Refuse a place where there is neither a folder nor a log, nor the URL of a store.

    Raises
    ------
    ArgumentError
        If there is none.
    """
    for place in places:
        if "://" in place or Path(place).is_dir() or _is_log(Path(place)):
            continue
        what = "is a file" if Path(place).exists() else "does not exist"
        raise ArgumentError(
            f"{place} {what}: expected a store, the directory of a run, or a folder that holds "
            "some; for what will be made later give the folder that it will be made in"
        )


def find(places: Sequence[str]) -> Found:
    """Stores and logs at some places and in the folders there, in the order of their names."""
    stores: dict[str, None] = {}
    logs: dict[Path, None] = {}
    left = _MOST_FOLDERS
    for place in places:
        if "://" in place:
            stores.update(dict.fromkeys(_at_url(place)))
        elif _is_log(Path(place)):
            logs[Path(place)] = None
        else:
            for folder in _folders(place, _DEPTH):
                left -= 1
                if left < 0:
                    return Found(tuple(stores), tuple(logs), cut_short=True)
                if _is_store(folder):
                    stores[str(Path(folder))] = None
                elif (log := Path(folder, LOG)).is_file():
                    logs[log] = None
    return Found(tuple(stores), tuple(logs))


def _is_log(path: Path) -> bool:
    return path.suffix == ".csv" and path.is_file()


def _at_url(place: str) -> list[str]:
    """A store at a URL, or its parts; a place that cannot be read is left to the watch of it."""
    try:
        found = [str(part) for part in parts(place).values()]
    except (ZarrPipeError, OSError):
        return [place]
    return found or [place]


def _is_store(folder: str) -> bool:
    """Whether a folder is a store of atomic systems, or becomes one."""
    if not _is_group(folder):
        return False
    return Path(folder, ATOMS_PTR).is_dir() or _has_parts(folder) is False


def _is_group(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "zarr.json"))  # noqa: PTH113, PTH118


def _has_parts(folder: str) -> bool | None:
    """Whether a group of zarrpipe is a parent of parts; None for another group."""
    try:
        attributes = json.loads(Path(folder, "zarr.json").read_bytes())["attributes"]
        found = "parts" in attributes["zarrpipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _folders(folder: str, depth: int) -> Iterator[str]:
    """A folder and those in it; what a store, a run or a hidden folder holds is left out."""
    yield folder
    if depth == 0 or (_is_group(folder) and not _has_parts(folder)):
        return
    try:
        with os.scandir(folder) as entries:
            inside = sorted(
                entry.path
                for entry in entries
                if entry.name[0] != "." and entry.name not in _INSIDE_OF_RUNS and entry.is_dir()
            )
    except OSError:  # it is gone, or may not be read
        return
    for one in inside:
        yield from _folders(one, depth - 1)
