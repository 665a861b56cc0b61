"""Configuration of the chunks and codecs of a new store's arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from zarr.abc.codec import ArrayArrayCodec, ArrayBytesCodec, BytesBytesCodec, Codec
from zarr.registry import get_codec_class

from zarrpipe.data.fields import check_name, check_unit
from zarrpipe.data.validate import check_count, check_flag
from zarrpipe.errors import FieldError

_CODEC_KEYS = {"name", "configuration"}
_MOST_ROWS = 1 << 31
_STEPS: Mapping[str, type[Codec]] = {
    "filters": ArrayArrayCodec,
    "serializer": ArrayBytesCodec,
    "compressors": BytesBytesCodec,
}


@dataclass(frozen=True)
class ZarrArrayConfig:
    """Chunks and codecs of an array.

    Parameters
    ----------
    compressors, filters : tuple, optional
        Zarr codecs, by name (``"zstd"``), as metadata (``{"name": "zstd", "configuration":
        {"level": 3}}``) or as objects. ``()`` means uncompressed: only such arrays can be written
        in place and mapped. None means the same, except in an object store: there it is zstd, since
        each append puts the last chunk of each array, of which most rows may be empty.
    serializer : optional
        Zarr's array-to-bytes codec in the same forms; None for Zarr's default for the dtype.
    chunk_size : int, optional
        Rows of a chunk; by default a power of two that grows with the capacity of the sink, of at
        least 65,536 if rows are written in place and 16,384 otherwise. In an object store it does
        not grow.
    shard_size : int, optional
        Rows of a shard, a multiple of `chunk_size`.
    sharded : bool
        Whether `merge` and `compact`, if no `shard_size` is given, combine chunks in shards of up
        to 64 MiB. A sink writes single chunks, since it would rewrite a shard at every append.
    write_empty_chunks : bool
        Whether to write chunks of fill values.

    Raises
    ------
    FieldError
        If a size is not positive, the shard is not a multiple of the chunk, or a codec is unknown.
    """

    compressors: tuple[Any, ...] | None = None
    filters: tuple[Any, ...] | None = None
    serializer: Any = None
    chunk_size: int | None = None
    shard_size: int | None = None
    sharded: bool = False
    write_empty_chunks: bool = True

    def __post_init__(self) -> None:
        for name in ("chunk_size", "shard_size"):
            size = getattr(self, name)
            if size is not None:
                size = check_count(name, size, 1, _MOST_ROWS, unit="rows", error=FieldError)
                object.__setattr__(self, name, size)
        for name in ("sharded", "write_empty_chunks"):
            flag = check_flag(name, getattr(self, name), error=FieldError)
            object.__setattr__(self, name, flag)
        for name in ("compressors", "filters"):
            value = getattr(self, name)
            if value is not None:
                listed = value if isinstance(value, list | tuple) else (value,)
                object.__setattr__(self, name, tuple(_codec(name, item) for item in listed))
        if self.serializer is not None:
            object.__setattr__(self, "serializer", _codec("serializer", self.serializer))
        if self.shard_size is not None and self.chunk_size is None:
            raise FieldError(f"shard_size={self.shard_size} needs a chunk_size that divides it")
        if self.shard_size is not None and self.shard_size % (self.chunk_size or 1):
            raise FieldError(
                f"shard_size={self.shard_size} is not a multiple of chunk_size={self.chunk_size}"
            )

    @classmethod
    def of(cls, value: ZarrArrayConfig | Mapping[str, Any] | None) -> ZarrArrayConfig:
        """Config from a mapping with the same names; None for the default."""
        return value if isinstance(value, cls) else _from_mapping(cls, value)

    @property
    def is_plain(self) -> bool:
        """Whether a chunk consists of the bytes of its rows only."""
        return not (
            self.compressors or self.filters or self.serializer or self.shard_size or self.sharded
        )


@dataclass(frozen=True)
class ZarrWriteConfig:
    """Configs of the arrays of a store by group, and of single fields.

    Parameters
    ----------
    meta, core, custom : ZarrArrayConfig or mapping
        For pointers and masks, for the fields of the registry, and for a user's own fields.
    field_overrides : mapping of str to ZarrArrayConfig or mapping
        By field name; overrides the config of the group.
    units : mapping of str to str
        Units of a user's own fields, by field name. The unit of a field in a store does not change;
        a field without one gets it from the next writer that names it. Fields of the registry are
        in the units of ASE.

    Raises
    ------
    FieldError
        If a part is of the wrong kind, a codec is unknown, or a field of the registry is given
        another unit than its own.

    Examples
    --------
    >>> config = ZarrWriteConfig(core={"compressors": ({"name": "zstd"},), "chunk_size": 4096})
    >>> config.for_array("core/forces").chunk_size
    4096
    """

    meta: ZarrArrayConfig = field(default_factory=ZarrArrayConfig)
    core: ZarrArrayConfig = field(default_factory=ZarrArrayConfig)
    custom: ZarrArrayConfig = field(default_factory=ZarrArrayConfig)
    field_overrides: Mapping[str, ZarrArrayConfig] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group in ("meta", "core", "custom"):
            object.__setattr__(self, group, ZarrArrayConfig.of(getattr(self, group)))
        overrides = _by_field("field_overrides", self.field_overrides)
        overrides = {name: ZarrArrayConfig.of(value) for name, value in overrides.items()}
        object.__setattr__(self, "field_overrides", overrides)
        units = _by_field("units", self.units)
        for name, unit in units.items():
            check_unit(name, unit)
        object.__setattr__(self, "units", units)

    @classmethod
    def of(cls, value: ZarrWriteConfig | Mapping[str, Any] | None) -> Self:
        """Config from a mapping with the same names; None is the default."""
        return value if isinstance(value, cls) else _from_mapping(cls, value)

    @classmethod
    def published(cls, level: int = 3, *, checksum: bool = False) -> Self:
        """Config of a data set to archive or to send: zstd, in shards of up to 64 MiB.

        It is meant for `zarrpipe.merge` and `zarrpipe.compact`, which choose the rows of chunks and
        shards by the size of the data. Such a store is decoded before it can be read at random.

        Parameters
        ----------
        level : int
            Level of zstd, from 1 (fast) to 22 (small).
        checksum : bool
            Whether each chunk ends with a crc32c of four bytes (Zarr's codec ``crc32c``). Every
            read verifies it, so that a damaged chunk raises and `zarrpipe.check` finds it. Without
            it, only damage that zstd cannot decode is found.

        Examples
        --------
        >>> config = ZarrWriteConfig.published()
        >>> config.core.sharded, config.core == config.meta == config.custom
        (True, True)
        >>> config = ZarrWriteConfig.published(checksum=True)
        >>> [codec.to_dict()["name"] for codec in config.core.compressors or ()]
        ['zstd', 'crc32c']
        """
        codec = {"name": "zstd", "configuration": {"level": level, "checksum": False}}
        codecs = (codec, "crc32c") if checksum else (codec,)
        array = ZarrArrayConfig(compressors=codecs, sharded=True)
        return cls(meta=array, core=array, custom=array)

    def for_array(self, path: str) -> ZarrArrayConfig:
        """Config of the array at a path; arrays in ``present`` use that of ``meta``."""
        group, _, name = path.rpartition("/")
        if name in self.field_overrides and group != "present":
            return self.field_overrides[name]
        if group.partition("/")[0] in ("meta", "present"):
            return self.meta
        return self.core if group == "core" else self.custom


def _codec(where: str, given: Any) -> Codec:
    """Zarr codec from a name, metadata or an object."""
    if isinstance(given, Codec):
        return _check_kind(where, given)
    metadata = {"name": given} if isinstance(given, str) else given
    expected = (
        f"{where}={given!r} is not a codec that zarr knows: expected a name such as 'zstd', "
        "{'name': 'zstd', 'configuration': {'level': 3}} or a zarr codec"
    )
    if not isinstance(metadata, Mapping) or not {"name"} <= set(metadata) <= _CODEC_KEYS:
        raise FieldError(expected)
    try:
        codec = get_codec_class(metadata["name"]).from_dict({"configuration": {}, **metadata})
    except (TypeError, ValueError, KeyError) as error:
        raise FieldError(f"{expected} ({error})") from error
    return _check_kind(where, codec)


def _check_kind(where: str, codec: Codec) -> Codec:
    """Refuse a codec that belongs to another argument."""
    if not isinstance(codec, _STEPS[where]):
        step = next(name for name, kind in _STEPS.items() if isinstance(codec, kind))
        raise FieldError(f"{where}={codec!r}, expected a codec of another kind: give it as {step}")
    return codec


def _by_field(what: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy a mapping, whose keys must be field names."""
    if value is not None and not isinstance(value, Mapping):
        raise FieldError(f"{what}={value!r}, expected a mapping of field names")
    for name in value or {}:
        check_name(name)
    return dict(value or {})


def _from_mapping(cls: type[Any], value: Any) -> Any:
    if value is None:
        return cls()
    known = [item.name for item in fields(cls)]
    if not isinstance(value, Mapping) or set(value) - set(known):
        raise FieldError(f"{value!r} is not a {cls.__name__}: expected a mapping of {known}")
    return cls(**value)
