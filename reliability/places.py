"""Places where stores of each kind stand, kept as they are and put back before each trial."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zarr.storage import FsspecStore, MemoryStore, WrapperStore

from reliability.interpose import Faults, local_files, watched
from zarrpipe.store.backend.location import StoreLike

_GROUPS = ("meta", "core", "custom")
_ZSTD = {"chunk_size": 16, "compressors": ({"name": "zstd", "configuration": {"level": 1}},)}


class Place:
    """Named stores of one kind.

    Parameters
    ----------
    folder
        Empty directory, for those that are local.
    """

    stored, more = 25, 20
    config: Any = dict.fromkeys(_GROUPS, _ZSTD)

    def __init__(self, folder: Path) -> None:
        self.faults = Faults()

    def at(self, name: str) -> StoreLike:
        """A store by its name, as every writer and reader is given it."""
        raise NotImplementedError

    def keep(self) -> None:
        """Remember all stores as they are."""
        raise NotImplementedError

    def restore(self) -> None:
        """Put back what was remembered."""
        raise NotImplementedError

    @contextmanager
    def meeting(self, faults: Faults) -> Iterator[None]:
        """Let the operations of the block meet faults."""
        self.faults = faults
        faults.armed = True
        try:
            yield
        finally:
            faults.armed = False


class LocalPlace(Place):
    """A directory with compressed stores."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder, self._kept = folder / "live", folder / "kept"
        self.folder.mkdir(parents=True)

    def at(self, name: str) -> StoreLike:
        """A path."""
        return self.folder / name

    def keep(self) -> None:
        """Copy the directory."""
        shutil.rmtree(self._kept, ignore_errors=True)
        shutil.copytree(self.folder, self._kept)

    def restore(self) -> None:
        """Copy it back; the directory itself stays."""
        for entry in self.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.copytree(self._kept, self.folder, dirs_exist_ok=True)

    @contextmanager
    def meeting(self, faults: Faults) -> Iterator[None]:
        """See `Place.meeting`."""
        with local_files(self.folder) as use:
            use(faults)
            with super().meeting(faults):
                yield


class PlainPlace(LocalPlace):
    """A directory with uncompressed stores, whose chunks are whole pages of memory and borders."""

    stored, more = 505, 20
    config: Any = {group: {"chunk_size": 512} for group in _GROUPS}  # noqa: RUF012  never changed


class MemoryPlace(Place):
    """Stores in the memory of this process."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._content: dict[str, dict[str, Any]] = {}
        self._kept: dict[str, dict[str, Any]] = {}
        self._kind = watched(MemoryStore, lambda: self.faults)

    def at(self, name: str) -> StoreLike:
        """A store that is watched."""
        store: StoreLike = self._kind(self._content.setdefault(name, {}))
        return store

    def keep(self) -> None:
        """Remember the objects, which are never changed."""
        self._kept = {name: dict(content) for name, content in self._content.items()}

    def restore(self) -> None:
        """Put the objects back."""
        self._content = {name: dict(content) for name, content in self._kept.items()}


class RemotePlace(Place):
    """Stores behind fsspec, as those in the cloud are; here they are in memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import fsspec  # type: ignore[import-untyped]  # noqa: PLC0415  an extra

        self._files = fsspec.filesystem("memory")
        self._url = f"{folder.absolute()}"
        self._kind = watched(WrapperStore, lambda: self.faults)
        self._kept: dict[str, bytes] = {}

    def at(self, name: str) -> StoreLike:
        """A store that is watched."""
        store: StoreLike = self._kind(FsspecStore.from_url(f"memory:/{self._url}/{name}"))
        return store

    def keep(self) -> None:
        """Remember the objects."""
        self._kept = {path: self._files.cat_file(path) for path in self._paths()}

    def restore(self) -> None:
        """Put the objects back."""
        for path in self._paths():
            self._files.rm_file(path)
        for path, content in self._kept.items():
            self._files.pipe_file(path, content)

    def _paths(self) -> list[str]:
        return list(self._files.find(self._url)) if self._files.exists(self._url) else []


PLACES: dict[str, Callable[[Path], Place]] = {
    "plain": PlainPlace,
    "compressed": LocalPlace,
    "memory": MemoryPlace,
    "remote": RemotePlace,
}
"""By name."""
