"""Frames of extended XYZ parsed many at a time, wherever that gives what ASE gives.

Comments that differ only in their numbers share a pattern. The first frame of a pattern is parsed
by ASE and here; where both are equal to the bit, the others are parsed here: numbers of comments by
their places, and the rows of all frames by one call of `numpy.loadtxt`. Other frames are ASE's.
"""

import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zarrpipe.formats.read.files.ase_frames import block_of
from zarrpipe.formats.read.frames import (
    ATOM,
    SYSTEM,
    AnyArray,
    Column,
    Entry,
    FrameBlock,
    Int64Array,
    Kind,
    column,
    joined_kind,
    kind_of,
)

if TYPE_CHECKING:
    from ase import Atoms

_FLOAT = re.compile(rb"[-+]?(?:\d*\.\d+(?:[eE][-+]?\d+)?|\d+\.?(?:[eE][-+]?\d+))")
_LONG = re.compile(rb"\d{19,}")
_INTEGER = re.compile(rb"\d+(?!\w*\s*=)")
_ITEM = re.compile(rb'([A-Za-z_][\w-]*)=("[^"\\{}\[\]]*"|[^\s"\\{}\[\],=]+)\s*')
_SIX = re.compile(r"""\b(stress|virial)\s*=\s*["']\s*((?:[^\s"']+\s+){5}[^\s"']+)\s*["']""")
_DIGIT = re.compile(rb"\d")
_TEXT_LETTERS = 16
MOST_PATTERNS = 5000
"""Patterns of comments that are remembered of a file."""

PARSE_ERRORS = (ValueError, LookupError, TypeError, OSError, ArithmeticError, AssertionError)
"""What ASE raises for a frame that it cannot read."""


class Text(NamedTuple):
    """A frame: its number in the file, its number of atoms, and its lines."""

    number: int
    num_atoms: int
    comment: bytes
    whole: bytes

    @property
    def rows(self) -> bytes:
        """Lines of the atoms."""
        return self.whole.split(b"\n", 2)[2]


def pattern_of(comment: bytes) -> bytes:
    """Comment with one and the same number in place of all values.

    Digits of keys stay, and integers that may not fit into 64 bits are of another pattern.
    """
    return _INTEGER.sub(b"1", _LONG.sub(b"long", _FLOAT.sub(b"0.5", comment)))


def parsed_by_ase(text: bytes) -> "Iterator[Atoms]":
    """Structures of the frames in a text."""
    from ase.io.extxyz import read_xyz  # noqa: PLC0415  ASE is optional

    found: Iterator[Atoms] = read_xyz(
        io.StringIO(text.decode()), index=slice(None), properties_parser=_parsed_comment
    )
    return found


def _parsed_comment(comment: str) -> dict[str, Any]:
    """Items of a comment by ASE, which has nine numbers for what files may have six of."""
    from ase.io.extxyz import key_val_str_to_dict  # noqa: PLC0415  ASE is optional

    items: dict[str, Any] = key_val_str_to_dict(_SIX.sub(_nine, comment))
    return items


def _nine(found: re.Match[str]) -> str:
    """Item of a symmetric matrix with all its numbers."""
    xx, yy, zz, yz, xz, xy = found[2].split()
    return f'{found[1]}="{xx} {xy} {xz} {xy} {yy} {yz} {xz} {yz} {zz}"'


class FrameParser:
    """Parser of frames that remembers the patterns which it parses as ASE does."""

    def __init__(self) -> None:
        self._samples: dict[bytes, dict[str, Any] | None] = {}

    def block(self, frames: Sequence[Text]) -> FrameBlock:
        """Block of frames of one file; raises one of `PARSE_ERRORS` if a frame is malformed."""
        samples = [self._sample(frame) for frame in frames]
        known = [sample for sample in samples if sample is not None]
        if len(known) == len(frames):
            try:
                return _fast(frames, known)
            except PARSE_ERRORS:  # such as other columns than those of the first frame
                pass
        atoms = parsed_by_ase(b"".join(frame.whole for frame in frames))
        return block_of(zip([frame.number for frame in frames], atoms, strict=True))

    def _sample(self, frame: Text) -> dict[str, Any] | None:
        """Items of the first comment of a frame's pattern; None where ASE has to parse."""
        pattern = pattern_of(frame.comment)
        if pattern not in self._samples and len(self._samples) < MOST_PATTERNS:
            self._samples[pattern] = _verified_sample(frame)
        return self._samples.get(pattern)


def _verified_sample(frame: Text) -> dict[str, Any] | None:
    """Items of a comment as ASE reads them, if the block that is made here is that of ASE."""
    try:
        items = _parsed_comment(frame.comment.decode().strip())
        (atoms,) = parsed_by_ase(frame.whole)
        same = _are_equal(_fast([frame], [items]), block_of([(frame.number, atoms)]))
    except PARSE_ERRORS:
        return None
    return items if same else None


def _fast(frames: Sequence[Text], samples: Sequence[dict[str, Any]]) -> FrameBlock:
    """Block of frames, each with the items of the sample of its pattern."""
    infos = [_items(frame, sample) for frame, sample in zip(frames, samples, strict=True)]
    return _block(frames, infos)


def _items(frame: Text, sample: dict[str, Any]) -> dict[str, Any]:
    """Items of a comment, by the types of those of its sample."""
    comment, place = frame.comment.strip(), 0
    items: dict[str, Any] = {}
    for found in _ITEM.finditer(comment):
        if found.start() != place:
            break
        place = found.end()
        key = found[1].decode()
        items[key] = _value(found[2], sample[key])
    if place != len(comment):
        raise ValueError(f"the comment is no list of keys and values: {comment!r}")
    return items


def _value(text: bytes, sample: Any) -> Any:
    """Value of a text whose type is that of a sample, and which is it if there is no digit."""
    if not _DIGIT.search(text):
        return sample
    if text[:1] == b'"':
        text = text[1:-1]
    if isinstance(sample, str):
        return text.decode()
    kind = np.asarray(sample).dtype.kind
    if kind not in "if":
        raise ValueError(text)
    convert = float if kind == "f" else int
    if np.ndim(sample) == 0:
        return convert(text)
    values = np.array([convert(item) for item in text.split()])
    return values.reshape(sample.shape, order="F") if sample.ndim == 2 else values


def _block(frames: Sequence[Text], infos: Sequence[dict[str, Any]]) -> FrameBlock:
    """Block of frames, whose atoms may have different columns."""
    from ase.data import atomic_numbers  # noqa: PLC0415  ASE is optional

    counts = np.array([frame.num_atoms for frame in frames], dtype=np.int64)
    if not counts.all():
        raise ValueError("a frame has no atoms")
    atoms = _atom_columns(frames, [info["Properties"] for info in infos], counts)
    symbols, positions = (atoms.pop(name).values for name in ("symbols", "positions"))
    table = {symbol: atomic_numbers[symbol.capitalize()] for symbol in np.unique(symbols)}
    cells = [info.get("Lattice") for info in infos]
    pbc = [info.get("pbc", cell is not None) for info, cell in zip(infos, cells, strict=True)]
    columns = _columns(infos)
    for key, found in atoms.items():
        columns[Entry(ATOM, key, "results" if key in _results() else "arrays")] = found
    return FrameBlock(
        frames=np.array([frame.number for frame in frames], dtype=np.int64),
        num_atoms=counts,
        atomic_numbers=np.array([table[symbol] for symbol in symbols.tolist()], dtype=np.int64),
        positions=positions,
        cell=np.array([np.zeros((3, 3)) if one is None else one.T for one in cells], dtype=float),
        pbc=np.array([np.broadcast_to(one, 3) for one in pbc], dtype=bool),
        columns=columns,
    )


def _atom_columns(
    frames: Sequence[Text], properties: Sequence[str], counts: Int64Array
) -> dict[str, Column]:
    """Columns of the atoms of all frames, by ASE's names."""
    groups: dict[str, list[int]] = {}
    for place, text in enumerate(properties):
        groups.setdefault(text, []).append(place)
    starts, found = np.concatenate(([0], np.cumsum(counts))), dict[str, Column]()
    for text, members in groups.items():
        rows = np.concatenate([np.arange(starts[one], starts[one + 1]) for one in members])
        for name, values in _arrays([frames[one] for one in members], text).items():
            if name not in found:
                fill = np.nan if values.dtype.kind == "f" else np.zeros((), values.dtype)
                whole = np.full((int(starts[-1]), *values.shape[1:]), fill, dtype=values.dtype)
                found[name] = Column(whole, np.zeros(len(frames), dtype=bool))
            ours = found[name]
            if ours.values.dtype != values.dtype or ours.values.shape[1:] != values.shape[1:]:
                raise ValueError(f"the frames have different kinds of {name}")
            ours.values[rows] = values
            ours.present[members] = True
    return found


def _arrays(frames: Sequence[Text], properties: str) -> dict[str, AnyArray]:
    """Arrays of the atoms of frames with the same columns, by ASE's names."""
    from ase.io.extxyz import parse_properties  # noqa: PLC0415  ASE is optional

    found, names, _, _ = parse_properties(properties)
    types = {"R": "f8", "I": "i8", "S": f"U{_TEXT_LETTERS}"}
    kinds = properties.split(":")[1::3]
    dtype = [
        (f"{name}{place}", types[kind])
        for name, kind in zip(names, kinds, strict=True)
        for place in range(found[name][1])
    ]
    text = io.BytesIO(b"".join(frame.rows for frame in frames))
    rows = np.loadtxt(text, dtype=dtype, comments=None, ndmin=1)
    expected = sum(frame.num_atoms for frame in frames)
    if expected != len(rows):
        raise ValueError(f"{len(rows)} lines of atoms, expected {expected}")
    arrays: dict[str, AnyArray] = {}
    for name in names:
        ase_name, width = found[name]
        parts = [rows[f"{name}{place}"] for place in range(width)]
        if parts[0].dtype.kind == "U" and (
            ase_name != "symbols" or np.strings.str_len(parts[0]).max() >= _TEXT_LETTERS
        ):
            raise ValueError(f"the columns {properties} have strings for each atom")
        arrays[ase_name] = parts[0].copy() if width == 1 else np.stack(parts, axis=1)
    return arrays


def _columns(infos: Sequence[dict[str, Any]]) -> dict[Entry, Column]:
    """Columns of the items of comments."""
    values: dict[str, list[Any]] = {}
    for place, info in enumerate(infos):
        for key, value in info.items():
            if key not in ("Lattice", "Properties", "pbc"):
                values.setdefault(key, [None] * len(infos))[place] = value
    ones, columns = np.ones(len(infos), dtype=np.int64), dict[Entry, Column]()
    for key, found in values.items():
        given = [_voigt(value) for value in found] if key == "stress" else found
        kinds = {kind_of(value) for value in given if value is not None}
        kind = joined_kind(kind for kind in kinds if kind is not None)
        if not isinstance(kind, Kind) or None in kinds:
            raise ValueError(key)
        where = "results" if key in _results() else "info"
        columns[Entry(SYSTEM, key, where)] = column(kind, given, ones)
    return columns


def _voigt(value: Any) -> Any:
    """Stress as ASE has it: xx, yy, zz, yz, xz, xy."""
    if np.shape(value) != (3, 3):
        return value
    return value[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def _results() -> frozenset[str]:
    """Names of what ASE has as the results of a calculator."""
    from ase.calculators.calculator import all_properties  # noqa: PLC0415  ASE is optional

    return frozenset(all_properties)


def _are_equal(ours: FrameBlock, theirs: FrameBlock) -> bool:
    """Whether two blocks have the same values, types and entries."""
    names = ("frames", "num_atoms", "atomic_numbers", "positions", "cell", "pbc")
    pairs = [(getattr(ours, name), getattr(theirs, name)) for name in names]
    if ours.columns.keys() != theirs.columns.keys() or theirs.left_out:
        return False
    for entry, one in ours.columns.items():
        other = theirs.columns[entry]
        pairs += [(one.values, other.values), (one.present, other.present)]
    return all(
        one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        for one, other in pairs
    )
