"""Files in and beside a store that belong to no array: leftovers, locks and foreign files."""

import os
import re
import socket
from pathlib import Path

import zarr

from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.lock import LOCK_FILE, Holder
from zarrpipe.store.backend.swap import find_leftovers
from zarrpipe.store.check.checked_store import CheckedStore
from zarrpipe.store.check.damaged_rows import AddFinding, CheckedRows
from zarrpipe.store.check.report import Finding, Severity
from zarrpipe.store.format.layout import GROUPS
from zarrpipe.store.format.validate import translate_zarr_errors

REPAIRED = re.compile(r"\.(?P<name>\w+)\.repair-[0-9a-f]{8}")
SWEEP = "remove leftovers of killed writers"


def holder_lives(holder: Holder) -> bool:
    """Whether the holder that a lock names may be alive; one on another machine may."""
    if holder.host != socket.gethostname():
        return True
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:
        return _runs(holder.pid)
    return re.search(rf"FLOCK +ADVISORY +WRITE +{holder.pid} ", locks) is not None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def report_lock(holder: Holder | None, add: AddFinding) -> None:
    """Report the writer that has the store open, or that was killed."""
    if holder is None:
        return
    message = (
        f"{holder} is writing the store: unfinished changes are notes, not errors"
        if holder_lives(holder)
        else f"{holder} left the lock without closing the store: the next writer takes it over"
    )
    add(Finding("lock", Severity.NOTE, LOCK_FILE, message))


def report_strays(store: CheckedStore, add: AddFinding) -> None:
    """Report arrays that the attributes do not name."""
    parents = {path.rpartition("/")[0] for path in store.known if path.count("/") > 1}
    for part in (*GROUPS, *sorted(parents)):
        try:
            with translate_zarr_errors(f"{store.root}/{part}"):
                zarr.open_group(store.group.store_path / part, mode="r", use_consolidated=False)
            names = _members(store, part)
        except FileNotFoundError:
            continue  # a writer creates it
        except (StoreFormatError, OSError) as error:
            message = f"{error}; put its zarr.json back from a copy of the store"
            add(Finding("metadata", Severity.ERROR, part, message))
            continue
        for path in (f"{part}/{name}" for name in sorted(names)):
            known = path in store.known or path in parents
            if not known and not REPAIRED.fullmatch(path.rpartition("/")[2]):
                message = "the attributes do not name it: zarrpipe does not change it"
                add(Finding("stray", Severity.NOTE, path, message))


def _members(store: CheckedStore, part: str) -> list[str]:
    """Names of the members of a group."""
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
    """Leftovers of killed writers and repairs in and beside a local store."""
    place = place.resolve()
    found = find_leftovers(place)
    for folder, folders, files in os.walk(place):
        found += [Path(folder, name) for name in files if name.endswith(".partial")]
        repaired = [name for name in folders if REPAIRED.fullmatch(name)]
        found += [Path(folder, name) for name in repaired]
        folders[:] = [name for name in folders if name not in repaired]
    return sorted(found)


def report_leftovers(store: CheckedStore, add: AddFinding) -> None:
    """Report leftovers of killed writers and repairs."""
    if store.root.directory is None:
        return
    place = store.root.directory.resolve()
    for path in leftovers(place):
        shown = path.relative_to(place) if path.is_relative_to(place) else Path("..", path.name)
        message = "is incomplete: a writer was killed while it created this"
        add(Finding("leftover", Severity.WARNING, shown.as_posix(), message, SWEEP))


def report_chunk_files(store: CheckedStore, needed: dict[str, int], add: AddFinding) -> None:
    """Report chunk files of a wrong size after the committed rows."""
    directory = store.root.directory
    for path, rows in store.arrays.items():
        if directory is None or not rows.plain:
            continue
        for file, size, whole in _odd_files(directory / path, rows, needed[path]):
            shown = file.relative_to(directory).as_posix()
            message = f"has {size:,} bytes, expected {whole:,}, and no committed rows: remove it"
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
