"""The exceptions that zarrpipe raises on purpose.

Each is also the builtin that a caller would catch without knowing this package::

    ZarrPipeError
      FieldError (ValueError)             a field does not fit its system, batch or registry entry
      SchemaError (ValueError)            a batch does not fit the fields that a store has fixed
      StoreFormatError (ValueError)       a store is damaged, foreign or of a newer format
      StoreFullError (RuntimeError)       a write would pass the capacity of the sink
      StoreEmptyError (RuntimeError)      there is nothing to read
      StoreLockedError (RuntimeError)     another writer has the store open
      StoreClosedError (RuntimeError)     the sink, writer or reader was closed
      StoreExistsError (FileExistsError)  a new store was asked for where one is
      StoreNotFoundError (FileNotFoundError)
      StoreReadOnlyError (PermissionError) a store that was opened for reading is to be written
"""


class ZarrPipeError(Exception):
    """Base class of every error that zarrpipe raises on purpose."""


class FieldError(ZarrPipeError, ValueError):
    """A field's level, shape, dtype or values do not fit."""


class SchemaError(ZarrPipeError, ValueError):
    """A batch does not fit the fields that a store has fixed."""


class StoreFormatError(ZarrPipeError, ValueError):
    """A store is damaged, not one of ours, or of a newer format."""


class StoreFullError(ZarrPipeError, RuntimeError):
    """A write would take a sink past its capacity; nothing was written."""


class StoreEmptyError(ZarrPipeError, RuntimeError):
    """There is no sample to read."""


class StoreLockedError(ZarrPipeError, RuntimeError):
    """Another writer has the store open."""


class StoreClosedError(ZarrPipeError, RuntimeError):
    """The sink, writer or reader was closed."""


class StoreExistsError(ZarrPipeError, FileExistsError):
    """A new store was asked for where one already is."""


class StoreNotFoundError(ZarrPipeError, FileNotFoundError):
    """There is no store at the given place."""


class StoreReadOnlyError(ZarrPipeError, PermissionError):
    """A store that was opened for reading alone is to be written."""
