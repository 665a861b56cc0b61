"""Extended XYZ: frames are found by their line counts, and parsed by ASE in parts of a file."""

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from zarrpipe.formats.read.files.ase_frames import block_of, entries_of
from zarrpipe.formats.read.files.assembly import row_kind
from zarrpipe.formats.read.files.extxyz_frames import (
    MOST_PATTERNS,
    PARSE_ERRORS,
    FrameParser,
    Text,
    parsed_by_ase,
    pattern_of,
)
from zarrpipe.formats.read.frames import Entry, Failure, FrameBlock, Kind, Part, Scan

if TYPE_CHECKING:
    from ase import Atoms

_PART_BYTES = 1 << 20
_PART_FRAMES = 500


class _Frame(NamedTuple):
    """A frame's number of atoms, comment, and place in its file; or why it cannot be read."""

    num_atoms: int
    comment: bytes
    start: int
    stop: int
    line: int
    failure: str | None = None


class ExtXYZ:
    """Reads ``.xyz`` and ``.extxyz`` files as ASE does.

    A scan goes through the whole file. It finds every kind of value, since comments that differ
    only in their numbers have values of the same types, and one of them is parsed.
    """

    name = "extxyz"
    in_processes = True

    def __init__(self) -> None:
        self._parser = FrameParser()

    def __reduce__(self) -> tuple[type["ExtXYZ"], tuple[()]]:
        return ExtXYZ, ()  # another process finds its patterns anew

    def scan(self, path: str) -> Scan:
        """Find the frames and the kinds of their values."""
        parts: list[Part] = []
        failures: list[Failure] = []
        kinds: dict[Entry, set[Kind]] = {}
        patterns: set[int] = set()
        begun: tuple[int, int, int] | None = None
        singles, number, last, tries = 0, 0, 0, 0
        with Path(path).open("rb") as file, Path(path).open("rb") as again:
            for number, frame in enumerate(_frames(file)):
                if frame.failure is not None:
                    failures.append(Failure(path, number, frame.line, frame.failure))
                    _end(parts, path, begun, number, last)
                    begun = None
                    continue
                if begun is None:
                    begun = (number, frame.start, frame.line)
                last = frame.stop
                singles += frame.num_atoms == 1
                pattern = hash(pattern_of(frame.comment))
                if pattern not in patterns and tries < MOST_PATTERNS:
                    tries += 1
                    if _add_kinds(kinds, again, frame):
                        patterns.add(pattern)
                full = frame.stop - begun[1] >= _PART_BYTES or number + 1 - begun[0] >= _PART_FRAMES
                if full:
                    _end(parts, path, begun, number + 1, last)
                    begun = None
            _end(parts, path, begun, number + 1, last)
        return Scan(
            tuple(parts),
            {entry: frozenset(found) for entry, found in kinds.items()},
            tuple(failures),
            exhaustive=tries < MOST_PATTERNS,
            num_single_atoms=singles,
        )

    def read(self, part: Part) -> FrameBlock:
        """Parse the frames of a part."""
        start, stop, line = part.span
        with Path(part.path).open("rb") as file:
            file.seek(start)
            text = file.read(stop - start)
        frames = [
            Text(number, frame.num_atoms, frame.comment, text[frame.start : frame.stop])
            for number, frame in enumerate(_frames(io.BytesIO(text)), start=part.first)
        ]
        try:
            return self._parser.block(frames)
        except PARSE_ERRORS:  # of one frame at least: find out which
            return _block_of_good(part, text, line)


def _end(
    parts: list[Part], path: str, begun: tuple[int, int, int] | None, number: int, stop: int
) -> None:
    """Add a part that ends before a frame, if one was begun."""
    if begun is not None:
        first, start, line = begun
        parts.append(Part(path, first, number - first, (start, stop, line)))


def _add_kinds(kinds: dict[Entry, set[Kind]], file: IO[bytes], frame: _Frame) -> bool:
    """Add the kinds of a frame's values; False for a frame that cannot be parsed."""
    file.seek(frame.start)
    try:
        (atoms,) = parsed_by_ase(file.read(frame.stop - frame.start))
    except PARSE_ERRORS:  # told when its part is read
        return False
    for entry, value in entries_of(atoms):
        kinds.setdefault(entry, set()).add(row_kind(entry, value))
    return True


def _block_of_good(part: Part, text: bytes, line: int) -> FrameBlock:
    """Block of the frames of a part that can be parsed, with the failures of the others."""
    good: list[tuple[int, Atoms]] = []
    failures: list[Failure] = []
    for number, frame in enumerate(_frames(io.BytesIO(text), line), start=part.first):
        try:
            (atoms,) = parsed_by_ase(text[frame.start : frame.stop])
            block_of([(number, atoms)])
            good.append((number, atoms))
        except PARSE_ERRORS as error:
            reason = f"{type(error).__name__}: {error}"
            failures.append(Failure(part.path, number, frame.line, reason))
    return block_of(good, failures)


def _frames(file: IO[bytes], line: int = 1) -> Iterator[_Frame]:
    """Frames of a file, found by their numbers of atoms; lines count from `line`."""
    offset, ahead = 0, file.readline()
    while ahead:
        if not ahead.strip():
            offset, line, ahead = offset + len(ahead), line + 1, file.readline()
            continue
        count = _count(ahead)
        if count is None:
            yield _Frame(0, b"", offset, offset, line, f"expected a number of atoms: {ahead!r:.60}")
            offset, line, ahead = _next_header(file, offset + len(ahead), line + 1)
            continue
        comment = file.readline()
        stop = offset + len(ahead) + len(comment) + sum(map(len, islice(file, count)))
        after = file.readline()
        if after.strip() and _count(after) is None and not _begins_frame(file):
            reason = f"has {count} atoms by its first line, and another number of lines"
            yield _Frame(count, comment, offset, stop, line, reason)
            file.seek(offset + len(ahead))
            offset, line, ahead = _next_header(file, offset + len(ahead), line + 1)
            continue
        yield _Frame(count, comment, offset, stop, line)
        offset, line, ahead = stop, line + 2 + count, after


def _begins_frame(file: IO[bytes]) -> bool:
    """Whether the line that was read last is the first of a frame, by the comment after it."""
    comment = file.readline()
    file.seek(-len(comment), io.SEEK_CUR)
    return b"=" in comment


def _next_header(file: IO[bytes], offset: int, line: int) -> tuple[int, int, bytes]:
    """Place, line number and text of the next line that looks like the first of a frame."""
    ahead, comment = file.readline(), file.readline()
    while ahead:
        row = file.readline()
        if _count(ahead) is not None and (b"=" in comment or len(row.split()) >= 4):
            file.seek(offset + len(ahead))
            return offset, line, ahead
        offset, line, ahead, comment = offset + len(ahead), line + 1, comment, row
    return offset, line, b""


def _count(line: bytes) -> int | None:
    """Number of atoms that a line says; None if it says none."""
    text = line.strip()
    return int(text) if text.isdigit() else None
