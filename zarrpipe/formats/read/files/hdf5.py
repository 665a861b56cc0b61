"""HDF5 files that MACE trains from, as its ``mace_prepare_data`` writes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zarrpipe.formats.read.files.assembly import Frame, scan_or_failure
from zarrpipe.formats.read.files.levels import LevelledReader, LooseFrame, read_loose, scan_loose
from zarrpipe.formats.read.frames import ATOM, SYSTEM, Entry, FrameBlock, Part, Scan
from zarrpipe.libraries import require

_MAGIC = b"\x89HDF\r\n\x1a\n"
_LEVELS = {
    **dict.fromkeys(("forces", "charges"), ATOM),
    **dict.fromkeys(("energy", "stress", "virials", "dipole", "polarizability", "head"), SYSTEM),
    **dict.fromkeys(("total_charge", "total_spin", "elec_temp"), SYSTEM),
}
"""Levels of MACE's own properties; a model may embed others."""

_WEIGHT = "_weight"
_STRUCTURE = frozenset({"atomic_numbers", "positions", "cell", "pbc", "weight", "config_type"})


def recognises(path: Path) -> bool:
    """Whether a file is HDF5 with a batch of configurations."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return False
    try:
        with _opened(path) as file:
            return any(name.startswith("config_batch_") for name in file)
    except OSError:  # cut off: it may be anyone's
        return False


class MaceHdf5(LevelledReader):
    """Reads MACE's HDF5 files: configurations with their properties and weights.

    A property whose weight is 0 is missing: MACE writes 0 for what a structure has no label of.
    Other weights than 1 are kept under the keys that MACE reads from extended XYZ,
    ``config_weight`` and ``config_energy_weight``.

    Parameters
    ----------
    levels
        Level, ``"atom"`` or ``"system"``, by name of a property that is not MACE's own.
    """

    name = "mace"
    in_processes = True

    def scan(self, path: str) -> Scan:
        """Look at some configurations."""
        return scan_or_failure(path, self._scan)

    def _scan(self, path: str) -> Scan:
        with _opened(path) as file:
            batches = _in_order(file)
            names = [f"{batch}/{config}" for batch in batches for config in _in_order(file[batch])]
            given = {**self.levels, **_LEVELS}
            return scan_loose(path, names, lambda i: _frame(i, file[names[i]]), given)

    def read(self, part: Part) -> FrameBlock:
        """Read the configurations of a part."""
        with _opened(part.path) as file:
            return read_loose(part, lambda number, name: _frame(number, file[name]))


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """HDF5 file that is only read."""
    with require("h5py", "import").File(path, "r") as file:
        yield file


def _in_order(group: Any) -> list[str]:
    """Names of the members ``..._0``, ``..._1`` of a group by their numbers."""
    return sorted(
        (name for name in group if name.startswith("config_")),
        key=lambda name: int(name.rpartition("_")[2]),
    )


def _frame(number: int, group: Any) -> LooseFrame:
    """Configuration as a frame."""
    if "properties" in group:
        labels, weights = dict(group["properties"]), dict(group["property_weights"])
    else:  # as MACE wrote until 0.3.12
        labels = {key: item for key, item in group.items() if key not in _STRUCTURE}
        names = [key for key in labels if key.endswith(_WEIGHT)]
        weights = {key.removesuffix(_WEIGHT): labels.pop(key) for key in names}
    weight = {key: _value(item) for key, item in weights.items()}
    missing = {key for key, value in weight.items() if value is not None and not np.any(value)}
    given = {f"config_{key}_weight": weight[key] for key in weight.keys() - missing}
    given["config_weight"] = _value(group["weight"])
    values = {
        Entry(SYSTEM, key): value
        for key, value in given.items()
        if value is not None and np.any(value != np.float64(1))
    }
    values[Entry(SYSTEM, "config_type")] = _value(group["config_type"])
    present = {key: _value(item) for key, item in labels.items() if key not in missing}
    keys = ("atomic_numbers", "positions", "cell", "pbc")
    numbers, positions, cell, pbc = (_value(group[key]) for key in keys)
    return LooseFrame(Frame(number, numbers, positions, cell, pbc, values), present)


def _value(item: Any) -> Any:
    """Value of a data set; None where MACE wrote that there is none."""
    value = item[()]
    if isinstance(value, bytes):
        value = value.decode()
    return None if isinstance(value, str) and value == "None" else value
