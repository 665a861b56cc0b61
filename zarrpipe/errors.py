"""The exceptions that zarrpipe raises on purpose.

Each is also the builtin that a caller would catch without knowing this package::

    ZarrPipeError
      ArgumentError (ValueError)          an argument has a value that it cannot have
        FieldError                        a field does not fit its system, batch or registry entry
          UnknownFieldError (KeyError)    there is no field of that name
          LabelError                      which key of a file is a label, or its unit, is not clear
      ArgumentTypeError (TypeError)       an argument is of a kind that it cannot be
      SampleIndexError (IndexError)       there is no such sample or system
        SampleIndexTypeError (TypeError)  an index is neither integers, a slice nor a mask
      MissingLibraryError (ImportError)   a library, or a release of it, is needed and not installed
      SchemaError (ValueError)            a batch does not fit the fields that a store has fixed
      StoreFormatError (ValueError)       a store is damaged, foreign or of a newer format
        StorePartsError                   a parent of parts is given where one store is expected
      SourceError (ValueError)            a file of an import cannot be read
      NonFiniteLossError (FloatingPointError) a training step gave NaN or an infinite loss
      StoreFullError (RuntimeError)       a write would pass the capacity of the sink
      StoreEmptyError (RuntimeError)      there is nothing to read
      StoreLockedError (RuntimeError)     another writer has the store open
      StoreClosedError (RuntimeError)     the sink, writer or reader was closed
      StoreBusyError (RuntimeError)       a sink or writer is called from inside a call of its own
      DeferredWriteError (RuntimeError)   a batch given to `ZarrData.defer` could not be written
      StoreExistsError (FileExistsError)  something is where a new store was asked for
      StoreMemoryError (MemoryError)      reading needs more memory than there is
      StoreNotFoundError (FileNotFoundError)
      StoreNotADirectoryError (NotADirectoryError) a file is where a store's directory should be
      StoreRenameError (OSError)          the place of a store cannot be taken by a new one
      StoreReadOnlyError (PermissionError) a store that may only be read is to be written
"""

from typing import Any, Self


class ZarrPipeError(Exception):
    """Base class of every error that zarrpipe raises on purpose."""


class ArgumentError(ZarrPipeError, ValueError):
    """An argument has a value that it cannot have."""


class FieldError(ArgumentError):
    """A field's level, shape, dtype or values do not fit."""


class UnknownFieldError(FieldError, KeyError):
    """There is no field of that name."""

    __str__ = Exception.__str__  # KeyError shows its message in quotes


class LabelError(FieldError):
    """Which key of a file is a label, or what unit it has, is not clear; nothing was written."""


class ArgumentTypeError(ZarrPipeError, TypeError):
    """An argument is of a kind that it cannot be."""


class SampleIndexError(ZarrPipeError, IndexError):
    """There is no such sample or system."""


class SampleIndexTypeError(SampleIndexError, TypeError):
    """An index is neither integers, a slice nor a mask."""


class MissingLibraryError(ZarrPipeError, ImportError):
    """A library, or a release of it, is needed and not installed."""


class SchemaError(ZarrPipeError, ValueError):
    """A batch does not fit the fields that a store has fixed."""


class StoreFormatError(ZarrPipeError, ValueError):
    """A store is damaged, not one of ours, or of a newer format."""


class StorePartsError(StoreFormatError):
    """A parent of parts, which has no samples itself, is given where one store is expected."""


class StoreMemoryError(ZarrPipeError, MemoryError):
    """Reading needs more memory than there is, or a damaged store says so."""


class SourceError(ZarrPipeError, ValueError):
    """A file of an import, or a frame in it, cannot be read."""


class NonFiniteLossError(ZarrPipeError, FloatingPointError):
    """A training step gave NaN or an infinite loss."""


class StoreFullError(ZarrPipeError, RuntimeError):
    """A write would take a sink past its capacity; nothing was written."""


class StoreEmptyError(ZarrPipeError, RuntimeError):
    """There is no sample to read."""


class StoreLockedError(ZarrPipeError, RuntimeError):
    """Another writer has the store open."""


class StoreClosedError(ZarrPipeError, RuntimeError):
    """The sink, writer or reader was closed."""


class StoreBusyError(ZarrPipeError, RuntimeError):
    """A sink or writer was called from inside another call of the same thread; nothing changed."""


class DeferredWriteError(ZarrPipeError, RuntimeError):
    """A batch that was given to `ZarrData.defer` could not be written.

    The cause is the exception's ``__cause__``. A batch that the store refuses is given up and is
    the attribute ``batch``; after every other error it stays queued, and ``batch`` is None.
    """

    batch: Any = None


class StoreExistsError(ZarrPipeError, FileExistsError):
    """Something is where a new store was asked for."""


class StoreNotFoundError(ZarrPipeError, FileNotFoundError):
    """There is no store at the given place."""

    @classmethod
    def at(cls, place: object) -> Self:
        """Error that there is no store at a place."""
        return cls(f"there is no Zarr store at {place}: expected the path or URL of a store")


class StoreNotADirectoryError(ZarrPipeError, NotADirectoryError):
    """A file is where the directory of a store should be."""


class StoreRenameError(ZarrPipeError, OSError):
    """The place of a store, a mount point or a layer of an image, cannot be taken by a new one."""


class StoreReadOnlyError(ZarrPipeError, PermissionError):
    """A store that may only be read is to be written."""
