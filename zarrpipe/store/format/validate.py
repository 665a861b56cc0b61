"""Validate the arrays of a store before reading them, and translate the errors of reading.

A store may come from an interrupted, faulty or hostile writer. Errors of Zarr, its codecs and JSON
become one error that names the place. Arrays that would need absurd memory, or whose codecs could
run code, are refused by their metadata.
"""

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import Codec
from zarr.codecs import ShardingCodec

from zarrpipe.errors import StoreFormatError, StoreMemoryError, ZarrPipeError

MOST_BYTES = 1 << 44
"""Largest array, or chunk of one, that is accepted, in bytes (16 TiB)."""

_MOST_DECODED = 1 << 34
_MOST_UNITS = 1 << 24
_DECODERS = ("builtins", "zarr", "numcodecs", "json", "zlib", "lzma", "struct", "numpy", "binascii")
_CODEC_LIBRARIES = ("zarr", "numcodecs")
_NO_THREADS = ("can't start new thread", "can't create new thread", "cannot schedule new futures")
"""Beginnings of Python's error messages for a lack of threads."""


@contextmanager
def translate_zarr_errors(place: object, cannot: str = "cannot be read") -> Iterator[None]:
    """Translate errors of Zarr, its codecs and JSON about `place` into one that names it.

    Content that cannot be decoded raises StoreFormatError, a lack of memory StoreMemoryError, and
    an error of a remote store OSError. Other OSErrors, interrupts and a lack of threads pass
    unchanged, since they do not mean damage.
    """
    try:
        yield
    except ZarrPipeError:
        raise
    except MemoryError as error:
        raise StoreMemoryError(
            f"{place} {cannot}: there is not enough memory. Free some; if there was enough, the "
            "store is damaged: run `zarrpipe check`"
        ) from error
    except gzip.BadGzipFile as error:  # a subclass of OSError, but not raised by a disk
        raise _damaged(f"{place} {cannot}", error) from error
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error).startswith(_NO_THREADS):
            raise
        if type(error).__module__.lstrip("_").partition(".")[0] in _DECODERS:
            raise _damaged(f"{place} {cannot}", error) from error
        text = f"{type(error).__name__}: {_first_line(error)}"
        raise OSError(f"{place} {cannot}: {text}") from error


def _damaged(what: str, error: Exception) -> StoreFormatError:
    return StoreFormatError(
        f"{what}, it is damaged or in an unknown format: {type(error).__name__}: "
        f"{_first_line(error)}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def check_array(array: zarr.Array[Any]) -> None:
    """Refuse an array by its metadata if its dtype, a codec or its size is not supported."""
    place, dtype = array.store_path, np.dtype(array.dtype)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise StoreFormatError(
            f"{place} has dtype {dtype}, expected a bool, an integer or a float of up to 64 bits"
        )
    if not array.ndim:
        raise StoreFormatError(f"{place} is a single number, expected an array with rows")
    for codec in array.metadata.codecs:  # type: ignore[union-attr]
        _check_codec(place, codec)
    _check_sizes(array, dtype)


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Convert a dtype to the byte order of this machine."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def _check_codec(place: object, codec: Codec) -> None:
    kind = type(codec)
    if (
        kind.__module__.partition(".")[0] not in _CODEC_LIBRARIES
        or "pickle" in kind.__name__.lower()
    ):
        raise StoreFormatError(
            f"{place} is encoded by {kind.__module__}.{kind.__qualname__}, expected codecs of zarr "
            "and numcodecs that decode numbers: rewrite the array without it"
        )
    if isinstance(codec, ShardingCodec):
        for inner in (*codec.codecs, *codec.index_codecs):
            _check_codec(place, inner)


def _check_sizes(array: zarr.Array[Any], dtype: np.dtype[Any]) -> None:
    chunks, shape, unit = array.chunks, array.shape, array.shards or array.chunks
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    sizes = {
        "rows": shape[0] * row_bytes,
        "a chunk": dtype.itemsize * math.prod(chunks),
        "a unit": dtype.itemsize * math.prod(unit),
    }
    for what, size in sizes.items():
        if not 0 <= size <= MOST_BYTES:
            raise StoreFormatError(
                f"{array.store_path} has shape {shape} and chunks of {unit}, so that {what} would "
                f"have {size} bytes: at most {MOST_BYTES} are accepted"
            )
    if min(chunks[0], unit[0]) < 1:
        raise StoreFormatError(f"{array.store_path} has chunks of {unit}, expected rows in each")
    inside = math.prod(-(-whole // max(part, 1)) for whole, part in zip(unit, chunks, strict=True))
    across = math.prod(-(-whole // max(part, 1)) for whole, part in zip(shape, unit, strict=True))
    if max(inside, across) > _MOST_UNITS:
        raise StoreFormatError(
            f"{array.store_path} has shape {shape} and chunks of {chunks}: at most "
            f"{_MOST_UNITS} chunks are accepted"
        )
    if (array.compressors or array.shards) and sizes["a unit"] > _MOST_DECODED:
        raise StoreFormatError(
            f"{array.store_path} has chunks of {unit} that are decoded as a whole, "
            f"{sizes['a unit']} bytes: at most {_MOST_DECODED} are read"
        )
