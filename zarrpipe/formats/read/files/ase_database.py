"""ASE's databases: SQLite and JSON files, and the LMDB files of fairchem and MACE."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from zarrpipe.formats.read.files.ase_frames import frame_of
from zarrpipe.formats.read.files.assembly import PART_FRAMES, scan_or_failure
from zarrpipe.formats.read.files.levels import LevelledReader, LooseFrame, read_loose, scan_loose
from zarrpipe.formats.read.frames import (
    POSITIONS,
    SYSTEM,
    Entry,
    FrameBlock,
    Part,
    Scan,
)
from zarrpipe.libraries import require

_LMDB = ".aselmdb"
_UNITS = ("_property_unit_dict", "property_units", "units")
"""Keys of the metadata that have units by key; the first one is SchNetPack's."""

_LENGTH_UNITS = ("_distance_unit", "distance_unit")
_NOT_TAKEN = {"calculator_parameters": "are parameters of a calculator, no values of a structure"}


def recognises(path: Path) -> bool:
    """Whether a file is a database of ASE, by its name and its content."""
    if not path.is_file():
        return False
    if path.suffix == _LMDB:
        return True
    if path.suffix == ".json":
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            return b'"nextid"' in file.read()
    return path.suffix == ".db" and _has_systems(path)


class AseDatabase(LevelledReader):
    """Reads ASE's ``.db``, ``.json`` and ``.aselmdb``, with key-value pairs and data of each row.

    An array of ``row.data`` is at the level that `levels` gives its key, that the metadata give it
    (those of our exports do), that its name tells (as ``forces`` does), or that structures of
    different sizes prove; else it is left out.

    Parameters
    ----------
    levels
        Level, ``"atom"`` or ``"system"``, by key of ``row.data``.
    """

    name = "db"
    in_processes = True

    def scan(self, path: str) -> Scan:
        """Look at some rows, and at the units in the metadata."""
        return scan_or_failure(path, self._scan)

    def _scan(self, path: str) -> Scan:
        with _opened(path) as database:
            ids, metadata = _ids(database), dict(database.metadata or {})
            row_of = _row_getter(database, path)
            levels = {**_levels(metadata), **self.levels}
            size = len(ids) if path.endswith(".json") else PART_FRAMES
            scan = scan_loose(
                path, ids, lambda number: _frame(number, row_of(ids[number])), levels, size
            )
            return replace(scan, units=_units(metadata, scan.entries))

    def read(self, part: Part) -> FrameBlock:
        """Read the rows of a part."""
        with _opened(part.path) as database:
            row_of = _row_getter(database, part.path)
            return read_loose(part, lambda number, key: _frame(number, row_of(key)))


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Database of a file that is only read."""
    if not path.endswith(_LMDB):
        with require("ase.db", "import").connect(path, use_lock_file=False) as database:
            yield database
        return
    library = require("ase_db_backends.aselmdb", "import")
    _check_size(path)
    with library.LMDBDatabase(path, readonly=True) as database:
        yield database


def _check_size(path: str) -> None:
    """Raise OSError if an LMDB file was cut off: reading behind its end would end the process."""
    lmdb = require("lmdb", "import")
    with lmdb.open(path, subdir=False, readonly=True, lock=False) as file:
        expected = (file.info()["last_pgno"] + 1) * file.stat()["psize"]
    size = Path(path).stat().st_size
    if size < expected:
        raise OSError(
            f"has {size} bytes, expected {expected}: it was cut off, or its last pages were never "
            "used, in which case 'mdb_copy -n -c' makes a file that can be read"
        )


def _ids(database: Any) -> list[int]:
    """Numbers of all rows in order."""
    known = getattr(database, "ids", None)  # that of LMDB reads no row
    if known is not None:
        return list(known)
    return sorted(row.id for row in database.select(columns=["id"], include_data=False))


def _row_getter(database: Any, path: str) -> Callable[[int], Any]:
    """What reads a row by its number; a JSON file is read at once."""
    if path.endswith(".json"):
        return {row.id: row for row in database.select()}.__getitem__
    return lambda number: database.get(id=number)


def _frame(number: int, row: Any) -> LooseFrame:
    """Row of a database as a frame."""
    frame = frame_of(number, row.toatoms())
    values = dict(frame.values)
    values |= {Entry(SYSTEM, key, "info"): value for key, value in row.key_value_pairs.items()}
    left_out: dict[Entry, str] = {}
    for key in row:  # a table of the user's own is a mapping
        if key in _NOT_TAKEN and row[key]:
            left_out[Entry(SYSTEM, key)] = _NOT_TAKEN[key]
        elif isinstance(row[key], dict):
            values |= {Entry(SYSTEM, name, key): value for name, value in row[key].items()}
    return LooseFrame(replace(frame, values=values, left_out=left_out), row.data, "info")


def _units(metadata: Mapping[str, Any], entries: Iterable[Entry]) -> dict[Entry, str]:
    """Units that the metadata of a database say, by entry."""
    by_key: dict[str, str] = {}
    for key, description in (metadata.get("key_descriptions") or {}).items():
        if isinstance(description, list | tuple) and len(description) == 3 and description[2]:
            by_key[key] = str(description[2])
    for name in _UNITS:
        if isinstance(metadata.get(name), Mapping):
            by_key |= {key: str(unit) for key, unit in metadata[name].items() if unit}
    units = {entry: by_key[entry.key] for entry in entries if entry.key in by_key}
    lengths = next((metadata[name] for name in _LENGTH_UNITS if metadata.get(name)), None)
    return units if lengths is None else {**units, POSITIONS: str(lengths)}


def _levels(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Levels that the metadata of a database say, by key; all but atoms have a row a structure."""
    found = metadata.get("levels")
    known = found if isinstance(found, Mapping) else {}
    return {str(key): "atom" if level == "atom" else "system" for key, level in known.items()}


def _has_systems(path: Path) -> bool:
    """Whether a file is a SQLite database with the tables of ASE."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
            query = "SELECT COUNT(*) FROM sqlite_master WHERE name IN ('systems', 'species')"
            return bool(file.execute(query).fetchone()[0] == 2)
    except sqlite3.Error:
        return False
