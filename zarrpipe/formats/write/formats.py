"""The table of formats that samples are written in, by name and by suffix."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zarrpipe.errors import ArgumentError
from zarrpipe.formats.write.ase_files import write_aselmdb, write_db, write_extxyz, write_traj
from zarrpipe.formats.write.mace_hdf5 import write_mace
from zarrpipe.formats.write.metatrain import FILES, write_metatrain
from zarrpipe.formats.write.npz import write_npz
from zarrpipe.formats.write.parquet import write_parquet
from zarrpipe.formats.write.samples import Samples


class FormatWriter(Protocol):
    """Writes samples to a path where nothing is, and says what it left out.

    The result has the reason by the name of a field, or of what else is not in the file.
    """

    def __call__(self, path: Path, samples: Samples) -> dict[str, str]:
        """Write all samples, in order."""
        ...


@dataclass(frozen=True)
class Format:
    """A format of files.

    `folder_of` has the names of its files, as patterns, where it is a directory.
    """

    name: str
    suffixes: tuple[str, ...]
    write: FormatWriter
    folder_of: tuple[str, ...] = ()


FORMATS = {
    one.name: one
    for one in (
        Format("extxyz", (".xyz", ".extxyz"), write_extxyz),
        Format("traj", (".traj",), write_traj),
        Format("db", (".db",), write_db),
        Format("aselmdb", (".aselmdb",), write_aselmdb),
        Format("mace", (".h5", ".hdf5"), write_mace),
        Format("metatrain", (".memmap",), write_metatrain, folder_of=FILES),
        Format("npz", (".npz",), write_npz),
        Format("parquet", (".parquet",), write_parquet),
    )
}


def format_of(out: Path, name: str | None) -> Format:
    """Format of a name, or of the suffix of a path."""
    if name is not None:
        if name not in FORMATS:
            raise ArgumentError(f"format is {name!r}, expected one of {', '.join(FORMATS)}")
        return FORMATS[name]
    for one in FORMATS.values():
        if out.suffix.lower() in one.suffixes:
            return one
    known = ", ".join(
        f"{suffix} ({own.name})" for own in FORMATS.values() for suffix in own.suffixes
    )
    raise ArgumentError(
        f"{out.name!r} has a suffix of no known format: give format=, or one of {known}"
    )
