"""Files in and beside a store that belong to no array: of killed writers, or of others."""

import os
import re
import socket
from pathlib import Path

import zarr

from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.lock import LOCK_FILE, Holder
from zarrpipe.store.backend.swap import find_leftovers
from zarrpipe.store.check.checked_store import CheckedStore
from zarrpipe.store.check.report import Finding, Severity
from zarrpipe.store.check.rows import AddFinding, CheckedRows
from zarrpipe.store.format.layout import GROUPS
from zarrpipe.store.format.validate import translate_zarr_errors

REPAIRED = re.compile(r"\.(?P<name>\w+)\.repair-[0-9a-f]{8}")
SWEEP = "remove what killed writers left"


def holder_lives(holder: Holder) -> bool:
    """Whether the holder named by a lock may still have it; on another machine, it may."""
    if holder.host != socket.gethostname():
        return True
    try:
        held = Path("/proc/locks").read_text()
    except OSError:
        return _runs(holder.pid)
    return re.search(rf"FLOCK +ADVISORY +WRITE +{holder.pid} ", held) is not None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def report_lock(holder: Holder | None, add: AddFinding) -> None:
    """Report the writer that has the store open, or that died."""
    if holder is None:
        return
    message = (
        f"{holder} is writing the store: what it has not finished is noted, not judged"
        if holder_lives(holder)
        else f"{holder} held the lock and has it no more: the next writer takes it over"
    )
    add(Finding("lock", Severity.NOTE, LOCK_FILE, message))


def report_strays(store: CheckedStore, add: AddFinding) -> None:
    """Report arrays that the attributes do not name."""
    for part in GROUPS:
        try:
            with translate_zarr_errors(f"{store.root}/{part}"):
                zarr.open_group(store.group.store_path / part, mode="r", use_consolidated=False)
            names = _members(store, part)
        except FileNotFoundError:
            continue  # a writer makes it
        except (StoreFormatError, OSError) as error:
            message = f"{error}; put its zarr.json back from a copy of the store"
            add(Finding("metadata", Severity.ERROR, part, message))
            continue
        for path in (f"{part}/{name}" for name in sorted(names)):
            if path not in store.known and not REPAIRED.fullmatch(path.partition("/")[2]):
                message = "the attributes do not name it: zarrpipe leaves it as it is"
                add(Finding("stray", Severity.NOTE, path, message))


def _members(store: CheckedStore, part: str) -> list[str]:
    """Names of what is in a group."""
    directory = store.root.directory
    if directory is not None:  # without reading their metadata, which may be damaged
        folder = directory / part
        return (
            [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
        )
    with translate_zarr_errors(f"{store.root}/{part}"):
        group = store.group.get(part)
        return list(group.keys()) if isinstance(group, zarr.Group) else []


def leftovers(place: Path) -> list[Path]:
    """Files and directories that killed writers and repairs left in and beside a local store."""
    place = place.resolve()
    found = find_leftovers(place)
    for folder, folders, files in os.walk(place):
        found += [Path(folder, name) for name in files if name.endswith(".partial")]
        left = [name for name in folders if REPAIRED.fullmatch(name)]
        found += [Path(folder, name) for name in left]
        folders[:] = [name for name in folders if name not in left]
    return sorted(found)


def report_leftovers(store: CheckedStore, add: AddFinding) -> None:
    """Report files and directories that killed writers left."""
    if store.root.directory is None:
        return
    place = store.root.directory.resolve()
    for path in leftovers(place):
        shown = path.relative_to(place) if path.is_relative_to(place) else Path("..", path.name)
        message = "was left by a writer that was killed while it made it"
        add(Finding("leftover", Severity.WARNING, shown.as_posix(), message, SWEEP))


def report_chunk_files(store: CheckedStore, needed: dict[str, int], add: AddFinding) -> None:
    """Report chunk files of a wrong size behind the committed rows."""
    directory = store.root.directory
    for path, rows in store.arrays.items():
        if directory is None or not rows.plain:
            continue
        for file, size, whole in _odd_files(directory / path, rows, needed[path]):
            shown = file.relative_to(directory).as_posix()
            message = f"has {size:,} bytes, expected {whole:,}, and no committed row: remove it"
            add(Finding("chunk", Severity.WARNING, shown, message))


def _odd_files(folder: Path, rows: CheckedRows, needed: int) -> list[tuple[Path, int, int]]:
    unit = rows.chunk_rows
    whole, found = unit * rows.row_bytes, []
    entries = os.scandir(folder / "c") if (folder / "c").is_dir() else ()
    for entry in entries:
        if entry.name.isdecimal() and int(entry.name) * unit >= needed:
            file = Path(entry.path, *("0",) * (rows.array.ndim - 1))
            size = file.stat().st_size if file.is_file() else whole
            if size != whole:
                found.append((file, size, whole))
    return found
