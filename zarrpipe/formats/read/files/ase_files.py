"""Files of all formats that ASE reads, other than extended XYZ and its databases."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from zarrpipe.errors import ArgumentError, ZarrPipeError
from zarrpipe.formats.read.files.ase_frames import frame_of
from zarrpipe.formats.read.files.assembly import (
    Frame,
    ScanFindings,
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

_NOT_READ_HERE = frozenset({"extxyz", "db", "json", "postgresql", "mysql"})
"""Formats that other readers take."""

_MARKS = {"castep-md": b"BEGIN header"}
"""What the beginning of a file has to have where ASE goes by the name alone, as of any ``.md``."""


def recognises(path: Path) -> bool:
    """Whether ASE can read a file, in a format that is not another reader's."""
    name = format_of(path)
    if name is None or name in _NOT_READ_HERE:
        return False
    if name not in _MARKS:
        return True
    with path.open("rb") as file:
        return _MARKS[name] in file.read(4096)


class AseFiles:
    """Reads what ``ase.io.read`` reads, in the format that ASE finds unless one is given.

    Trajectories (``.traj``) are read frame by frame, so that a damaged frame costs no other. Files
    of other formats are read from the beginning, so what follows a damaged frame is lost, and is
    reported as one failure; a reader keeps its place in a file from part to part.
    """

    name = "ase"
    in_processes = True

    def __init__(self, format: str | None = None) -> None:  # noqa: A002  as ASE calls it
        self.format = format
        self._place: tuple[str, int, Iterator[Frame]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"format": self.format, "_place": None}

    def scan(self, path: str) -> Scan:
        """Read some frames of a trajectory, or all of any other file."""
        if self.format is not None:
            _check_format(self.format)
        if _is_trajectory(path):
            return scan_or_failure(path, _scan_trajectory)
        seen = ScanFindings()
        failures = []
        try:
            for frame in self._frames(path):
                seen.add(frame)
        except (ZarrPipeError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  ASE's parsers may fail in any way
            reason = f"{reason_of(error)}; ASE reads nothing from here on"
            failures.append(Failure(path, seen.count, None, reason))
        if not seen.count and not failures:
            name = self.format or format_of(path)
            reason = f"ASE finds no structure in it when read as {name!r}: name its format"
            failures.append(Failure(path, 0, None, reason))
        return seen.scan(parts_of(path, seen.count), failures)

    def read(self, part: Part) -> FrameBlock:
        """Read the frames of a part."""
        numbers = range(part.first, part.first + part.num_frames)
        if _is_trajectory(part.path):
            with _trajectory(part.path) as (_, load):
                return block_from(*read_each(part.path, numbers, load))
        path, reached, frames = self._place or ("", 0, iter(()))
        if path != part.path or reached > part.first:
            reached, frames = 0, self._frames(part.path)
        found = list(islice(frames, part.first - reached, numbers.stop - reached))
        self._place = (part.path, numbers.stop, frames)
        return block_from(found)

    def _frames(self, path: str) -> Iterator[Frame]:
        """All frames of a file in order."""
        io = require("ase.io", "import")
        found = io.iread(path, ":", self.format or format_of(path), do_not_split_by_at_sign=True)
        yield from (frame_of(number, atoms) for number, atoms in enumerate(found))


def format_of(path: str | Path) -> str | None:
    """ASE's name for the format of a file; None if ASE knows none or only writes it."""
    formats = require("ase.io.formats", "import")
    if Path(path).is_dir():
        bundles = require("ase.io.bundletrajectory", "import").BundleTrajectory
        return "bundletrajectory" if bundles.is_bundle(str(path)) else None
    try:
        name: str = formats.filetype(str(path), guess=False)
    except (formats.UnknownFileTypeError, OSError):
        return None
    found = formats.ioformats.get(name)
    return name if found is not None and found.can_read else None


def _check_format(name: str) -> None:
    """Raise ArgumentError for a format that ASE does not read."""
    found = require("ase.io.formats", "import").ioformats.get(name)
    if found is None or not found.can_read:
        raise ArgumentError(
            f"ASE reads no format {name!r}: 'ase info --formats' lists those it has"
        )


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
    with require("ase.io.trajectory", "import").TrajectoryReader(path) as trajectory:
        yield len(trajectory), lambda number: frame_of(number, trajectory[number])
