"""Names and places inside a store, its attributes, and the sizes of its chunks.

The only module that knows how a store's parts are called.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec
from zarr.storage import LocalStore, MemoryStore

from zarrpipe.data.fields import CORE_FIELDS, Level
from zarrpipe.data.schema import Field, Schema, field_from_array
from zarrpipe.errors import FieldError, StoreFormatError
from zarrpipe.store.config import ZarrWriteConfig

FORMAT = 1
"""Version of the format that this package writes, and the newest that it reads."""

GROUPS = ("meta", "core", "custom", "present")
ATOMS_PTR, EDGES_PTR = "meta/atoms_ptr", "meta/edges_ptr"
SAMPLES_MASK, ATOMS_MASK, EDGES_MASK = "meta/samples_mask", "meta/atoms_mask", "meta/edges_mask"
IDS = "meta/ids"

_LEAST_ROWS, _LEAST_ROWS_IN_PLACE = 16_384, 65_536
_LARGEST_PAGE = 65_536
_MOST_CHUNKS = 4_096
_ATOMS_PER_SYSTEM, _EDGES_PER_ATOM = 64, 32


@dataclass(frozen=True)
class ArraySpec:
    """An array as it is created.

    Parameters
    ----------
    path
        Place in the store, ``group/name``.
    level
        What a row belongs to, for the size of its chunks.
    dtype
        NumPy dtype.
    shape
        Shape of one row.
    fill
        What rows hold that were never written.
    """

    path: str
    level: Level
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fill: float | int | bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def meta_specs() -> tuple[ArraySpec, ...]:
    """Arrays that every store has."""
    system, pointer, mask = Level.SYSTEM, np.dtype("int64"), np.dtype("bool")
    return (
        ArraySpec(ATOMS_PTR, system, pointer, (), 0),
        ArraySpec(EDGES_PTR, system, pointer, (), 0),
        ArraySpec(SAMPLES_MASK, system, mask, (), False),
        ArraySpec(ATOMS_MASK, Level.ATOM, mask, (), True),
        ArraySpec(EDGES_MASK, Level.EDGE, mask, (), True),
        ArraySpec(IDS, system, np.dtype("uint64"), (), 0),
    )


def field_spec(item: Field) -> ArraySpec:
    """Array of a field."""
    return ArraySpec(field_path(item), item.level, item.dtype, item.shape, item.fill)


def present_spec(item: Field) -> ArraySpec:
    """Array that says which samples have a field."""
    return ArraySpec(present_path(item.name), Level.SYSTEM, np.dtype("bool"), (), True)


def field_path(item: Field) -> str:
    """Place of a field's array."""
    return f"{item.group}/{item.name}"


def present_path(name: str) -> str:
    """Place of the array that says which samples have the field."""
    return f"present/{name}"


def chunk_rows(spec: ArraySpec, capacity: int, *, in_place: bool = False) -> int:
    """Rows of a chunk: a power of two, whole pages of any platform, few chunks at capacity.

    Where rows are written in place, a chunk costs when it is made; elsewhere it is written anew by
    each append, and smaller.

    Examples
    --------
    >>> positions = ArraySpec("core/positions", Level.ATOM, np.dtype("f4"), (3,), 0.0)
    >>> chunk_rows(positions, capacity=1_000_000), chunk_rows(positions, capacity=100_000_000)
    (16384, 2097152)
    """
    rows_at_capacity = capacity
    if spec.level is not Level.SYSTEM:
        rows_at_capacity *= _ATOMS_PER_SYSTEM
    if spec.level is Level.EDGE:
        rows_at_capacity *= _EDGES_PER_ATOM
    odd_power = spec.row_bytes & -spec.row_bytes
    least = _LEAST_ROWS_IN_PLACE if in_place else _LEAST_ROWS
    rows = max(least, _LARGEST_PAGE // max(odd_power, 1))
    while rows * _MOST_CHUNKS < rows_at_capacity:
        rows *= 2
    return rows


def create_array(
    group: zarr.Group, spec: ArraySpec, config: ZarrWriteConfig, capacity: int
) -> zarr.Array[Any]:
    """Create an array without rows, replacing what a killed writer may have left of it."""
    parent, name = spec.path.split("/")
    chosen = config.for_array(parent, name)
    in_place = chosen.is_plain and isinstance(group.store, LocalStore)
    rows = chosen.chunk_size or chunk_rows(spec, capacity, in_place=in_place)
    options: dict[str, Any] = {} if chosen.serializer is None else {"serializer": chosen.serializer}
    if chosen.shard_size is not None:
        options["shards"] = (chosen.shard_size, *spec.shape)
    return group.create_array(
        spec.path,
        shape=(0, *spec.shape),
        chunks=(rows, *spec.shape),
        dtype=spec.dtype,
        fill_value=spec.fill,
        compressors=chosen.compressors,
        filters=chosen.filters,
        config={"write_empty_chunks": chosen.write_empty_chunks},
        overwrite=spec.path != ATOMS_PTR,  # its folder has the lock, and it is never removed
        **options,
    )


def is_plain(array: zarr.Array[Any]) -> bool:
    """Whether a chunk of the array is the little-endian bytes of its rows and nothing else."""
    encoding = array.metadata.to_dict().get("chunk_key_encoding")
    serializer = array.serializer
    return (
        not array.compressors
        and not array.filters
        and array.shards is None
        and array.chunks[1:] == array.shape[1:]
        and isinstance(serializer, BytesCodec)
        and (serializer.endian is None or serializer.endian.value == "little")
        and encoding == {"name": "default", "configuration": {"separator": "/"}}
    )


def chunk_file(directory: Path, index: int, ndim: int) -> Path:
    """File of a chunk that spans all but the first dimension."""
    return directory.joinpath("c", str(index), *("0",) * (ndim - 1))


@dataclass(frozen=True)
class Attributes:
    """What the root's attributes say.

    Parameters
    ----------
    num_samples
        Samples when the store was last closed; the pointers say how many there are now.
    levels
        Level by field name.
    partly
        Fields that have an array in ``present/``.
    deleted
        Samples whose mask is False.
    generation
        Changes whenever the store is emptied or its samples move; "" in a foreign store.
    ours
        Whether zarrpipe wrote the store.
    """

    num_samples: int
    levels: Mapping[str, str] = field(default_factory=dict)
    partly: frozenset[str] = frozenset()
    deleted: int = 0
    generation: str = ""
    ours: bool = True

    @classmethod
    def read(cls, group: zarr.Group) -> "Attributes":
        """Attributes of a root group.

        Raises
        ------
        StoreFormatError
            If they are of a newer format, or not of the form that zarrpipe and nvalchemi write.
        """
        attributes = group.attrs.asdict()
        own, fields = attributes.get("zarrpipe", {}), attributes.get("fields", {})
        count = attributes.get("num_samples", 0)
        if not isinstance(own, dict) or not isinstance(fields, dict) or type(count) is not int:
            raise StoreFormatError(
                f"{group.store_path}: 'zarrpipe' and 'fields' must be objects and 'num_samples' a "
                f"number, found {own!r}, {fields!r} and {count!r}"
            )
        version = own.get("format", FORMAT)
        if type(version) is not int or not 1 <= version <= FORMAT:
            raise StoreFormatError(
                f"{group.store_path} has format {version!r}, this zarrpipe reads up to {FORMAT}: "
                "upgrade zarrpipe"
            )
        levels: dict[str, str] = {}
        for listed in fields.values():
            if not isinstance(listed, dict):
                raise StoreFormatError(
                    f"{group.store_path}: fields {listed!r} should map names to levels"
                )
            levels.update(listed)
        partly = frozenset(map(str, own.get("partly_present", ())))
        return cls(
            count,
            levels,
            partly,
            int(own.get("deleted", 0)),
            str(own.get("generation", "")),
            "zarrpipe" in attributes,
        )

    def to_dict(self, schema: Schema) -> dict[str, Any]:
        """Attributes to be stored for a schema."""
        levels: dict[str, dict[str, str]] = {"core": {}, "custom": {}}
        for item in schema.values():
            levels[item.group][item.name] = item.level.value
        units = {item.name: item.unit for item in schema.values() if item.unit}
        own = {
            "format": FORMAT,
            "generation": self.generation,
            "units": units,
            "partly_present": sorted(self.partly),
            "deleted": self.deleted,
        }
        return {"num_samples": self.num_samples, "fields": levels, "zarrpipe": own}


def new_generation() -> str:
    """Name of a generation, unlike any other."""
    return uuid.uuid4().hex


def read_schema(group: zarr.Group, attributes: Attributes) -> Schema:
    """Schema of a store: levels from its attributes, dtype and shape from its arrays.

    Raises
    ------
    StoreFormatError
        If a field that the attributes name has no array, or a level is none.
    """
    fields = {}
    usual_of = {name: "core" if name in CORE_FIELDS else "custom" for name in attributes.levels}
    found = find_arrays(group, [f"{part}/{name}" for name, part in usual_of.items()])
    for name, level in attributes.levels.items():
        usual = usual_of[name]
        other = "custom" if usual == "core" else "core"
        part, array = usual, found[f"{usual}/{name}"]
        if array is None:
            part, array = other, find_array(group, f"{other}/{name}")
        if array is None:
            raise StoreFormatError(
                f"{group.store_path}: the attributes name the field {name!r}, but there is no "
                f"array core/{name} or custom/{name}"
            )
        try:
            fields[name] = field_from_array(name, level, array.dtype, array.shape[1:], part)
        except FieldError as error:
            raise StoreFormatError(f"{group.store_path}: {error}") from error
    return Schema(fields)


def is_empty(group: zarr.Group) -> bool:
    """Whether a group has neither attributes nor members, as one that was only just made."""
    return not group.attrs.asdict() and next(iter(group.keys()), None) is None


def find_arrays(group: zarr.Group, paths: Sequence[str]) -> dict[str, zarr.Array[Any] | None]:
    """Arrays at paths, or None, all asked for at once where an answer takes time."""
    if isinstance(group.store, LocalStore | MemoryStore):
        return {path: find_array(group, path) for path in paths}
    with ThreadPoolExecutor(max(1, min(32, len(paths)))) as pool:
        return dict(zip(paths, pool.map(lambda path: find_array(group, path), paths), strict=True))


def find_array(group: zarr.Group, path: str) -> zarr.Array[Any] | None:
    """Array at `path`, or None."""
    found = group.get(path)
    return found if isinstance(found, zarr.Array) else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a metadata document at once: a reader sees the old or the new one."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    partial.write_text(json.dumps(content, indent=2))
    partial.replace(path)
