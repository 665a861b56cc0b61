"""Files of all formats that ASE reads, other than extended XYZ and its databases."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zarrpipe.errors import ZarrPipeError
from zarrpipe.formats.read.ase_frames import entries_of
from zarrpipe.formats.read.assembly import (
    Frame,
    block_from,
    parts_of,
    read_each,
    reason_of,
    sampled,
    scan_of,
    scan_or_failure,
)
from zarrpipe.formats.read.frames import Failure, FrameBlock, Part, Scan
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from ase import Atoms

_NOT_READ_HERE = frozenset({"extxyz", "db", "json", "postgresql", "mysql"})
"""Formats that other readers take."""


class AseFiles:
    """Reads what ``ase.io.read`` reads, in the format that ASE finds unless one is given.

    Trajectories (``.traj``) are read frame by frame, so that a damaged frame costs no other. A file
    of any other format is one part: ASE reads it from the beginning, so what follows a damaged
    frame is lost, and is reported as one failure.
    """

    name = "ase"
    in_processes = True

    def __init__(self, format: str | None = None) -> None:  # noqa: A002  as ASE calls it
        self.format = format

    @staticmethod
    def recognises(path: str) -> bool:
        """Whether ASE can read a file, in a format that is not another reader's."""
        return format_of(path) not in {None, *_NOT_READ_HERE}

    def scan(self, path: str) -> Scan:
        """Read some frames of a trajectory, or all of any other file."""
        if _is_trajectory(path):
            return scan_or_failure(path, _scan_trajectory)
        found: list[Frame] = []
        failures = []
        try:
            for frame in self._frames(path):
                found.append(frame)  # noqa: PERF402  those before an error are kept
        except (ZarrPipeError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  ASE's parsers may fail in any way
            reason = f"{reason_of(error)}; ASE reads nothing from here on"
            failures.append(Failure(path, len(found), None, reason))
        if not found and not failures:
            name = self.format or format_of(path)
            reason = f"ASE finds no structure in it when read as {name!r}: name its format"
            failures.append(Failure(path, 0, None, reason))
        return scan_of([Part(path, 0, len(found))] if found else [], found, failures=failures)

    def read(self, part: Part) -> FrameBlock:
        """Read the frames of a part."""
        numbers = range(part.first, part.first + part.num_frames)
        if _is_trajectory(part.path):
            with _trajectory(part.path) as (_, load):
                return block_from(*read_each(part.path, numbers, load))
        return block_from(frame for _, frame in zip(numbers, self._frames(part.path), strict=False))

    def _frames(self, path: str) -> Iterator[Frame]:
        """All frames of a file in order."""
        io = require("ase.io", "ase")
        found = io.iread(path, ":", self.format or format_of(path), do_not_split_by_at_sign=True)
        yield from (frame_of(number, atoms) for number, atoms in enumerate(found))


def frame_of(number: int, atoms: "Atoms") -> Frame:
    """Structure of ASE as a frame."""
    values = dict(entries_of(atoms))
    return Frame(number, atoms.numbers, atoms.positions, np.asarray(atoms.cell), atoms.pbc, values)


def format_of(path: str) -> str | None:
    """ASE's name for the format of a file; None if ASE knows none or only writes it."""
    formats = require("ase.io.formats", "ase")
    if Path(path).is_dir():
        bundles = require("ase.io.bundletrajectory", "ase").BundleTrajectory
        return "bundletrajectory" if bundles.is_bundle(path) else None
    try:
        name: str = formats.filetype(path, guess=False)
    except (formats.UnknownFileTypeError, OSError):
        return None
    found = formats.ioformats.get(name)
    return name if found is not None and found.can_read else None


def _is_trajectory(path: str) -> bool:
    """Whether a file is one of ASE's, whose frames can be read in any order."""
    return Path(path).is_file() and format_of(path) == "traj" and _is_ulm(path)


def _is_ulm(path: str) -> bool:
    """Whether a file is an uncompressed one of ASE's binary format."""
    with Path(path).open("rb") as file:
        return file.read(8) == b"- of Ulm"


def _scan_trajectory(path: str) -> Scan:
    with _trajectory(path) as (count, load):
        frames, _ = read_each(path, sampled(count), load)
    return scan_of(parts_of(path, count), frames)


@contextmanager
def _trajectory(path: str) -> Iterator[tuple[int, Callable[[int], Frame]]]:
    """Number of frames of a trajectory, and what reads one of them."""
    with require("ase.io.trajectory", "ase").TrajectoryReader(path) as trajectory:
        yield len(trajectory), lambda number: frame_of(number, trajectory[number])
