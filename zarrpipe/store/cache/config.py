"""Where decoded rows are cached, as a user asks for it."""

from dataclasses import dataclass
from pathlib import Path

from zarrpipe.errors import ArgumentTypeError, FieldError, StoreNotADirectoryError


@dataclass(frozen=True)
class CacheConfig:
    """Where rows go that cannot be mapped where they are.

    Parameters
    ----------
    directory : Path, optional
        On a local disk, shared by the processes of this machine; None for memory.
    limit : int, optional
        Most bytes that are held; None for no limit.
    """

    directory: Path | None = None
    limit: int | None = None

    @classmethod
    def of(cls, cache_dir: str | Path | None, cache_bytes: int | None) -> "CacheConfig":
        """Caching as a user asks for it.

        Raises
        ------
        ValueError
            If the number of bytes is not a positive integer.
        StoreNotADirectoryError
            If something else than a directory stands at the place.
        """
        whole = isinstance(cache_bytes, int) and not isinstance(cache_bytes, bool)
        if cache_bytes is not None and not (whole and cache_bytes > 0):
            raise FieldError(
                f"cache_bytes={cache_bytes!r}, expected a positive integer of bytes, or None"
            )
        if cache_dir is not None and not isinstance(cache_dir, str | Path):
            raise ArgumentTypeError(f"cache_dir={cache_dir!r}, expected a path or None")
        directory = None if cache_dir is None else Path(cache_dir).expanduser().absolute()
        if directory is not None and directory.exists() and not directory.is_dir():
            raise StoreNotADirectoryError(f"cache_dir {directory} is a file, expected a directory")
        return cls(directory, cache_bytes)
