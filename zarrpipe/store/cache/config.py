"""Where decoded rows are cached, as a user asks for it."""

from dataclasses import dataclass
from pathlib import Path

from zarrpipe.data.validate import check_count
from zarrpipe.errors import ArgumentTypeError, FieldError, StoreNotADirectoryError


@dataclass(frozen=True)
class CacheConfig:
    """Directory on a local disk, None for memory; most bytes that are held, None for no limit."""

    directory: Path | None = None
    limit: int | None = None

    @classmethod
    def of(cls, cache_dir: str | Path | None, cache_bytes: int | None) -> "CacheConfig":
        """Config of the arguments of a dataset, which are validated."""
        if cache_bytes is not None:
            cache_bytes = check_count(
                "cache_bytes", cache_bytes, 1, unit="bytes, or None", error=FieldError
            )
        if cache_dir is not None and not isinstance(cache_dir, str | Path):
            raise ArgumentTypeError(f"cache_dir={cache_dir!r}, expected a path or None")
        directory = None if cache_dir is None else Path(cache_dir).expanduser().absolute()
        if directory is not None and directory.exists() and not directory.is_dir():
            raise StoreNotADirectoryError(f"cache_dir {directory} is a file, expected a directory")
        return cls(directory, cache_bytes)
