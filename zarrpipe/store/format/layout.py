"""Names and places of a store's arrays, and the sizes of their chunks."""

import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from zarrpipe.compat import row_chunks
from zarrpipe.data.fields import CORE_FIELDS, REQUIRED_FIELDS, Kind
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field, Schema, field_from_array
from zarrpipe.errors import FieldError, StoreFormatError
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.metadata import FORMAT, Attributes
from zarrpipe.store.format.validate import check_array, native, translate_zarr_errors

MARK = "zarrpipe"
"""Attribute of every array that zarrpipe created; an unlisted array with it is a leftover."""

GROUPS = ("meta", "core", "custom", "present")
ATOMS_PTR, EDGES_PTR = Level.ATOM.pointers, Level.EDGE.pointers
SAMPLES_MASK, ATOMS_MASK, EDGES_MASK = "meta/samples_mask", "meta/atoms_mask", "meta/edges_mask"
IDS = "meta/ids"
SUMS = "meta/sums"

_META_KINDS = {
    **dict.fromkeys((ATOMS_PTR, EDGES_PTR), "iu"),
    **dict.fromkeys((SAMPLES_MASK, ATOMS_MASK, EDGES_MASK), "b"),
    IDS: "u",
}
_KINDS_IN = {"present/": "b", "meta/level_ptrs/": "iu"}
ROW_MASKS = (ATOMS_MASK, EDGES_MASK)
"""Masks of levels that have pointers; only deletions write to them."""
KINDS = {Kind.FLOAT: "f", Kind.INTEGER: "iu", Kind.NUMBER: "fiu", Kind.BOOL: "biu"}

_LITTLE_ENDIAN = (
    {"name": "bytes"},  # single bytes have no order
    {"name": "bytes", "configuration": {"endian": "little"}},
)
_LEAST_ROWS, _LEAST_ROWS_IN_PLACE = 16_384, 65_536
_LARGEST_PAGE = 65_536
_UNTIL_FULL = ({"name": "zstd", "configuration": {"level": 1, "checksum": False}},)
_MOST_CHUNKS = 4_096


@dataclass(frozen=True)
class ArraySpec:
    """An array to create: its path ``group/name``, and the level, shape and fill of its rows."""

    path: str
    level: Level
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fill: float | int | bool

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * math.prod(self.shape)


def meta_specs() -> tuple[ArraySpec, ...]:
    """Specs of the arrays that every store has."""
    return (
        *map(pointer_spec, (Level.ATOM, Level.EDGE)),
        ArraySpec(SAMPLES_MASK, Level.SYSTEM, np.dtype("bool"), (), False),
        ArraySpec(ATOMS_MASK, Level.ATOM, np.dtype("bool"), (), True),
        ArraySpec(EDGES_MASK, Level.EDGE, np.dtype("bool"), (), True),
        ArraySpec(IDS, Level.SYSTEM, np.dtype("uint64"), (), 0),
    )


def store_specs(schema: Schema) -> list[ArraySpec]:
    """Specs of the arrays of a store with these fields, those in ``present`` left out."""
    own = (level for level in schema.own_levels if level.has_pointers)
    return [*meta_specs(), *map(pointer_spec, own), *map(field_spec, schema.values())]


def pointer_spec(level: Level) -> ArraySpec:
    """Spec of the pointers [N+1] of a level that has them."""
    return ArraySpec(level.pointers, Level.SYSTEM, np.dtype("int64"), (), 0)


def field_spec(item: Field) -> ArraySpec:
    """Spec of the array of a field."""
    return ArraySpec(item.path, item.level, item.dtype, item.shape, item.fill)


def present_spec(item: Field) -> ArraySpec:
    """Spec of the array of flags of a nullable field."""
    return ArraySpec(present_path(item.name), Level.SYSTEM, np.dtype("bool"), (), True)


def present_path(name: str) -> str:
    """Path of the array that records which samples have the field."""
    return f"present/{name}"


def chunk_rows(spec: ArraySpec, capacity: int, *, in_place: bool = False) -> int:
    """Rows of a chunk: a power of two, whole pages of any platform, few chunks at capacity.

    Chunks that are written in place are larger than others, which each append writes anew.

    >>> positions = ArraySpec("core/positions", Level.ATOM, np.dtype("f4"), (3,), 0.0)
    >>> chunk_rows(positions, capacity=1_000_000), chunk_rows(positions, capacity=100_000_000)
    (16384, 2097152)
    """
    rows_at_capacity = capacity * spec.level.expected
    odd_power = spec.row_bytes & -spec.row_bytes
    least = _LEAST_ROWS_IN_PLACE if in_place else _LEAST_ROWS
    rows = max(least, _LARGEST_PAGE // max(odd_power, 1))
    while rows * _MOST_CHUNKS < rows_at_capacity:
        rows *= 2
    return rows


def create_array(
    group: zarr.Group, spec: ArraySpec, config: ZarrWriteConfig, capacity: int
) -> zarr.Array[Any]:
    """Create an array without rows, replacing leftovers of a killed writer."""
    parent, name = spec.path.rsplit("/", 1)
    for folder in accumulate(parent.split("/"), "{}/{}".format) if "/" in parent else ():
        group.require_group(folder)
    chosen = config.for_array(spec.path)
    in_place = chosen.is_plain and isinstance(group.store, LocalStore)
    objects = isinstance(group.store, ObjectStore)  # an append puts the last chunk of each array
    rows = chosen.chunk_size or chunk_rows(spec, 1 if objects else capacity, in_place=in_place)
    compressors = chosen.compressors
    if objects and compressors is None:
        compressors = _UNTIL_FULL
    dense = chosen.write_empty_chunks or in_place or name in REQUIRED_FIELDS
    dense &= spec.path not in ROW_MASKS
    options: dict[str, Any] = {} if chosen.serializer is None else {"serializer": chosen.serializer}
    if chosen.shard_size is not None:
        options["shards"] = (chosen.shard_size, *row_chunks(spec.shape))
    return group.create_array(
        spec.path,
        shape=(0, *spec.shape),
        chunks=(rows, *row_chunks(spec.shape)),
        dtype=spec.dtype,
        fill_value=spec.fill,
        compressors=compressors,
        filters=chosen.filters,
        config={"write_empty_chunks": chosen.write_empty_chunks or dense},
        attributes={MARK: {"format": FORMAT, "dense": dense, "rows": 0}},
        overwrite=spec.path != ATOMS_PTR,  # its folder contains the lock and is never removed
        **options,
    )


def is_dense(array: zarr.Array[Any]) -> bool:
    """Whether every written row has a chunk, even a chunk of fill values.

    Another Zarr writer may leave out chunks of fill values, so an array that it resized is sparse.
    """
    return not resized_by_another(array) and made_dense(array)


def made_dense(array: zarr.Array[Any]) -> bool:
    """Whether zarrpipe stores every chunk of the array, whatever others have left out since.

    Without the `dense` mark, assume sparse, except arrays that older versions wrote in full:
    required fields, and plain local arrays other than masks. Rows without values have no chunks.
    """
    mark = array.attrs.get(MARK)
    if not isinstance(mark, dict) or 0 in array.shape[1:]:
        return False
    before = array.basename in REQUIRED_FIELDS or (
        isinstance(array.store_path.store, LocalStore)
        and is_plain(array)
        and not array.path.endswith(ROW_MASKS)
    )
    return bool(mark.get("dense", before))


def resized_by_another(array: zarr.Array[Any]) -> bool:
    """Whether another Zarr writer has changed the number of rows since zarrpipe last did.

    zarrpipe writes ``rows`` beside each shape, in one document, and others keep attributes.
    Arrays of versions before that have no such entry.
    """
    mark = array.attrs.get(MARK)
    return isinstance(mark, dict) and mark.get("rows", array.shape[0]) != array.shape[0]


def record_rows(attributes: dict[str, Any], rows: int) -> None:
    """Record in the attributes of an array that zarrpipe gives it a number of rows."""
    if isinstance(attributes.get(MARK), dict):
        attributes[MARK] = {**attributes[MARK], "rows": rows}


def is_plain(array: zarr.Array[Any]) -> bool:
    """Whether a chunk of the array consists of the little-endian bytes of its rows only."""
    encoding = array.metadata.to_dict().get("chunk_key_encoding")
    serializer = array.serializer
    return (
        not array.compressors
        and not array.filters
        and array.shards is None
        and row_chunks(array.chunks[1:]) == row_chunks(array.shape[1:])
        and isinstance(serializer, BytesCodec)
        and serializer.to_dict() in _LITTLE_ENDIAN
        and encoding == {"name": "default", "configuration": {"separator": "/"}}
    )


def chunk_file(directory: Path, index: int, ndim: int) -> Path:
    """File of a chunk that spans all but the first dimension."""
    return directory.joinpath("c", str(index), *("0",) * (ndim - 1))


def read_schema(group: zarr.Group, attributes: Attributes) -> Schema:
    """Schema of a store: levels from its attributes, dtypes and shapes from its arrays."""
    fields = {}
    paths = {name: attributes.paths_of(name) for name in attributes.levels}
    found = find_arrays(group, [usual for usual, *_ in paths.values()])
    for name, (usual, *others) in paths.items():
        path, array = usual, found[usual]
        for other in others:
            if array is None:
                path, array = other, find_array(group, other)
        if array is None:
            raise StoreFormatError(
                f"{group.store_path}: the attributes name the field {name!r}, but there is no "
                f"array {' or '.join(paths[name])}"
            )
        try:
            item = field_from_array(
                name,
                attributes.level_of(name),
                native(np.dtype(array.dtype)),
                array.shape[1:],
                group=path.rpartition("/")[0],
                index_of=attributes.counted_by(name),
                categories=attributes.categories.get(name),
            )
        except FieldError as error:
            raise StoreFormatError(f"{group.store_path}: {error}") from error
        fields[name] = _with_unit(item, attributes.units.get(name), group)
        _check_field(fields[name], group)
    return Schema(fields)


def _with_unit(item: Field, unit: str | None, group: zarr.Group) -> Field:
    """Field with its stored unit."""
    if unit is None or unit == item.unit:
        return item
    if item.name in CORE_FIELDS:
        raise StoreFormatError(
            f"{group.store_path} has {item.name!r} in {unit or 'no unit'}, expected "
            f"{item.unit or 'no unit'}: convert the store, or give the field another name"
        )
    return dataclasses.replace(item, unit=unit)


def _check_field(item: Field, group: zarr.Group) -> None:
    """Refuse a field of the registry whose array has another dtype or row shape."""
    spec = CORE_FIELDS.get(item.name)
    if spec is None:
        return
    if item.dtype.kind not in KINDS[spec.kind] or spec.shape not in (None, item.shape):
        shape = "any shape" if spec.shape is None else f"shape {spec.shape}"
        raise StoreFormatError(
            f"{group.store_path}/{item.path} has dtype {item.dtype} and rows of shape "
            f"{item.shape}, the registry has {item.name!r} as {spec.kind.value} of {shape}"
        )


def is_empty(group: zarr.Group) -> bool:
    """Whether a group has neither attributes nor members, as after its creation."""
    return not group.attrs.asdict() and next(iter(group.keys()), None) is None


def find_arrays(group: zarr.Group, paths: Sequence[str]) -> dict[str, zarr.Array[Any] | None]:
    """Open arrays, or None for missing ones; concurrently in a remote store."""
    if isinstance(group.store, LocalStore | MemoryStore):
        return {path: find_array(group, path) for path in paths}
    with ThreadPoolExecutor(max(1, min(32, len(paths)))) as pool:
        return dict(zip(paths, pool.map(lambda path: find_array(group, path), paths), strict=True))


def find_array(group: zarr.Group, path: str) -> zarr.Array[Any] | None:
    """Open the array at `path`, or None; raises StoreFormatError for an invalid one."""
    place = f"{group.store_path}/{path}"
    with translate_zarr_errors(place):
        try:
            found = group[path]
        except KeyError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        if not isinstance(found, zarr.Array):
            return None
        check_array(found)
        if not isinstance(found.metadata.attributes, dict):
            raise StoreFormatError(f"{place} has attributes that are not an object")
        kinds = _META_KINDS.get(path) or _KINDS_IN.get(f"{path.rpartition('/')[0]}/", "")
        if kinds and (found.ndim != 1 or np.dtype(found.dtype).kind not in kinds):
            raise StoreFormatError(
                f"{place} has dtype {found.dtype} and shape {found.shape}, expected one dimension "
                f"of {'bool' if kinds == 'b' else 'integers'}"
            )
    return found
