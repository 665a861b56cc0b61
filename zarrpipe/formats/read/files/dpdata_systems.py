"""Systems that dpdata reads: DeePMD's folders, and every other format of it by name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zarrpipe.errors import ArgumentError, SourceError
from zarrpipe.formats.read.files.assembly import PART_FRAMES, row_kind, scan_or_failure
from zarrpipe.formats.read.frames import (
    ATOM,
    SYSTEM,
    AnyArray,
    Column,
    Entry,
    FrameBlock,
    Int64Array,
    Part,
    Scan,
)
from zarrpipe.libraries import require

_STRUCTURE = frozenset({"coords", "cells", "orig", "atom_names", "atom_numbs", "atom_types"})
_MIXED = frozenset({"real_atom_types", "real_atom_names", "nopbc"})
_FILES = frozenset({"coord", "box", "type", "type_map", "real_atom_types", "nopbc"})
"""Files of the structure in DeePMD's folders."""


def recognises(path: Path) -> bool:
    """Whether a folder is a system of DeePMD."""
    return _folder_format(path) is not None


def _folder_format(path: Path) -> str | None:
    """Dpdata's name for the format of a folder; None if it is no system of DeePMD."""
    if not (path / "type.raw").is_file():
        return None
    sets = next(path.glob("set.*"), None)
    if sets is None:
        return "deepmd/raw" if (path / "coord.raw").is_file() else None
    return "deepmd/npy/mixed" if (sets / "real_atom_types.npy").is_file() else "deepmd/npy"


class DpdataSystems:
    """Reads DeePMD's folders, or any format of dpdata that is named, as ``vasp/outcar``.

    Values are in eV and Angstrom, as dpdata gives them; its virial has the sign of zarrpipe's.
    dpdata holds all frames of a system in memory, and so does this until it reads another one.

    Parameters
    ----------
    format
        dpdata's name for the format; by default that of a folder of DeePMD is found.
    type_map
        Element of each atom type, for folders without a ``type_map.raw``.
    """

    name = "dpdata"
    in_processes = False

    def __init__(
        self,
        format: str | None = None,  # noqa: A002  as dpdata calls it
        type_map: Sequence[str] | None = None,
    ) -> None:
        self.format = format
        self.type_map = None if type_map is None else list(type_map)
        self._loaded: tuple[str, list[_System]] | None = None

    def scan(self, path: str) -> Scan:
        """Load the systems of a file or folder."""
        return scan_or_failure(path, self._scan)

    def _scan(self, path: str) -> Scan:
        systems = self._systems(path)
        if not any(len(system) for system in systems):
            raise ValueError("dpdata finds no frame in it")
        kinds: dict[Entry, set[Any]] = {}
        for system in systems:
            for entry, values in system.labels.items():
                if len(values):
                    kinds.setdefault(entry, set()).add(row_kind(entry, values[0]))
        return Scan(
            tuple(_parts(path, systems)),
            {entry: frozenset(found) for entry, found in kinds.items()},
            exhaustive=True,
            num_single_atoms=sum(len(one) for one in systems if len(one.numbers) == 1),
            left_out={entry: why for one in systems for entry, why in one.left_out.items()},
        )

    def read(self, part: Part) -> FrameBlock:
        """Copy the frames of a part."""
        number, first = part.span
        system = self._systems(part.path)[number]
        frames = slice(first, first + part.num_frames)
        num_atoms = len(system.numbers)
        present = np.ones(part.num_frames, dtype=bool)
        return FrameBlock(
            frames=np.arange(part.first, part.first + part.num_frames),
            num_atoms=np.full(part.num_frames, num_atoms),
            atomic_numbers=np.tile(system.numbers, part.num_frames),
            positions=system.positions[frames].reshape(-1, 3).astype(np.float64),
            cell=system.cell[frames].astype(np.float64),
            pbc=np.full((part.num_frames, 3), system.is_periodic),
            columns={
                entry: Column(_rows(entry, values[frames]), present)
                for entry, values in system.labels.items()
            },
            left_out=system.left_out,
        )

    def _systems(self, path: str) -> "list[_System]":
        """Systems of a file or folder; those of the last one are kept."""
        if self._loaded is None or self._loaded[0] != path:
            name = self.format or _folder_format(Path(path))
            if name is None:
                raise SourceError(
                    f"{path} is no folder of DeePMD: name its format as dpdata does, such as "
                    "'dpdata:vasp/outcar'"
                )
            try:
                found = _load(path, name, self.type_map)
            except NotImplementedError as error:
                raise ArgumentError(f"dpdata cannot read format {name!r}: {error}") from error
            self._loaded = (path, [_system(path, one) for one in found])
        return self._loaded[1]


@dataclass(frozen=True)
class _System:
    """F frames of the same n atoms."""

    numbers: Int64Array  # [n]
    positions: AnyArray  # [F, n, 3]
    cell: AnyArray  # [F, 3, 3]
    is_periodic: bool
    labels: Mapping[Entry, AnyArray]  # [F, ...] or [F, n, ...]
    left_out: Mapping[Entry, str]

    def __len__(self) -> int:
        return len(self.positions)


def _load(path: str, name: str, type_map: list[str] | None) -> list[Any]:
    """Systems of dpdata, with labels if there are any."""
    given = {} if type_map is None else {"type_map": type_map}
    try:
        return _systems_of(path, name, given, labeled=True)
    except (NotImplementedError, require("dpdata.data_type", "import").DataError) as error:
        if not isinstance(error, NotImplementedError) and "energies not found" not in str(error):
            raise
    return _systems_of(path, name, given, labeled=False)


def _systems_of(path: str, name: str, given: Mapping[str, Any], *, labeled: bool) -> list[Any]:
    """One system, or all of a format that has several: its class for one takes the first alone."""
    dpdata = require("dpdata", "import")

    def one() -> list[Any]:
        return [(dpdata.LabeledSystem if labeled else dpdata.System)(path, fmt=name, **given)]

    def many() -> list[Any]:
        systems = dpdata.MultiSystems(**given)
        return list(systems.load_systems_from_file(path, fmt=name, labeled=labeled))

    base = require("dpdata.format", "import").Format
    has_many = (
        type(dpdata.system.load_format(name)).from_multi_systems is not base.from_multi_systems
    )
    found: list[Any] | None = None
    errors: list[Exception] = []
    for load in (many, one) if has_many else (one, many):
        try:
            found = load()
        except (NotImplementedError, TypeError) as error:  # how dpdata says that it is the other
            errors.append(error)
            continue
        if any(len(system) for system in found):
            return found
    if found is None:
        raise errors[0]
    return found


def _system(path: str, system: Any) -> _System:
    """System of dpdata as arrays."""
    axis = require("dpdata.data_type", "import").Axis
    data = system.data
    labels: dict[Entry, AnyArray] = {}
    left_out: dict[Entry, str] = {}
    for dtype in system.DTYPES:
        if dtype.name in _STRUCTURE | _MIXED or dtype.name not in data:
            continue
        axes = [place for place, size in enumerate(dtype.shape or ()) if size is axis.NATOMS]
        entry = Entry(ATOM if axes == [1] else SYSTEM, dtype.deepmd_name)
        if (dtype.shape or (None,))[0] is axis.NFRAMES and axes in ([], [1]):
            labels[entry] = np.asarray(data[dtype.name])
        else:
            left_out[entry] = f"has the axes {dtype.shape} in dpdata, expected frames first"
    known = {entry.key for entry in labels}
    for key in sorted(_file_keys(Path(path)) - known - _FILES):
        left_out[Entry(SYSTEM, key)] = (
            "is not read by dpdata, which knows no such data, or only beside energies: register a "
            "dpdata.data_type.DataType for it"
        )
    return _System(
        _atomic_numbers(data),
        data["coords"],
        data["cells"],
        not data.get("nopbc", False),
        labels,
        left_out,
    )


def _file_keys(folder: Path) -> set[str]:
    """Names of the arrays in a folder of DeePMD."""
    if not folder.is_dir():
        return set()
    files = [*folder.glob("set.*/*.npy"), *folder.glob("*.raw")]
    return {file.stem for file in files}


def _atomic_numbers(data: Mapping[str, Any]) -> Int64Array:
    """Atomic numbers of the atoms of a system."""
    table = require("dpdata.periodic_table", "import").ELEMENTS
    names = [data["atom_names"][kind] for kind in data["atom_types"]]
    wrong = sorted(set(names) - set(table))
    if wrong:
        raise SourceError(
            f"the atom types {', '.join(wrong)} are no elements: write their elements to a "
            "type_map.raw, or give type_map to DpdataSystems"
        )
    return np.array([table.index(name) + 1 for name in names], dtype=np.int64)


def _rows(entry: Entry, values: AnyArray) -> AnyArray:
    """Rows of systems or of their atoms, one after the other."""
    found = values.reshape(-1, *values.shape[2:]) if entry.level == ATOM else values
    return found.astype(np.float64) if found.dtype.kind == "f" else found


def _parts(path: str, systems: list[_System]) -> Iterator[Part]:
    """Parts of one system each."""
    first = 0
    for number, system in enumerate(systems):
        for start in range(0, len(system), PART_FRAMES):
            count = min(PART_FRAMES, len(system) - start)
            yield Part(path, first, count, (number, start))
            first += count
