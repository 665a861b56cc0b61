"""Operations on stores that are counted, and one of which fails, kills or is done by half.

For local files this stands between Python and the system: audit events say what is about to be
opened, renamed, made or removed, whoever does it, and the functions of `os` that raise none are
wrapped. For every other store it stands between zarr-python and the store.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from zarr.abc.store import Store

from zarrpipe.store.backend.mapped_memory import libc

_CHANGES = frozenset(
    f"os.{name}" for name in ("rename", "remove", "mkdir", "rmdir", "link", "symlink", "truncate")
)
_READS = frozenset({"os.listdir", "os.scandir"})
_LOCK = "fcntl.flock"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_WRAPPED = ("pwrite", "fsync", "fdatasync", "posix_fallocate", "copy_file_range")
_SETTERS = ("set", "set_if_not_exists", "delete", "set_sync", "delete_sync")
_GETTERS = ("get", "exists", "get_sync")
_LISTERS = ("list", "list_prefix", "list_dir")


class Killed(BaseException):
    """What a writer meets instead of its next operation; it never gets another."""


class Mode(Enum):
    """What happens at the chosen operation."""

    COUNT = "count"
    FAIL = "fails once"
    FULL = "fails, as every change after it"
    KILL = "kills"
    TEAR = "kills half-way"


class Faults:
    """Counts operations, and lets one of them go wrong.

    Parameters
    ----------
    mode
        What happens.
    at
        Number of the operation, from 0 on.
    code
        Error number of the OSError that is raised.
    """

    def __init__(self, mode: Mode = Mode.COUNT, at: int = -1, code: int = errno.EIO) -> None:
        self.mode, self.at, self.code = mode, at, code
        self.met: list[tuple[str, bool]] = []
        self.struck = self.armed = False
        self._lock = threading.Lock()

    def meet(self, name: str, *, change: bool, half: Callable[[], object] | None = None) -> None:
        """Note an operation that is about to happen, or raise in its place."""
        if not self.armed:
            return
        with self._lock:
            number = len(self.met)
            self.met.append((name, change))
            here = number == self.at
            after, self.struck = self.struck, self.struck or here
        if here and half is not None and self.mode in (Mode.TEAR, Mode.FULL):
            half()
        if self.mode in (Mode.KILL, Mode.TEAR) and (here or after):
            raise Killed(name)
        if (here and self.mode is Mode.FAIL) or (
            self.mode is Mode.FULL and (here or (after and change))
        ):
            raise OSError(self.code, os.strerror(self.code), name)


class _System:
    """The audit hook, which cannot be taken away, and what it is to tell about where."""

    def __init__(self) -> None:
        self.faults: Faults | None = None
        self.folder = ""

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        faults = self.faults
        if faults is None or not faults.armed:
            return
        if event == "open":
            path, mode, flags = arguments
            change = bool(isinstance(flags, int) and flags & _WRITING)
            change = change or bool(isinstance(mode, str) and set(mode) & set("wax+"))
            if isinstance(path, str | bytes | os.PathLike) and self._inside(path):
                faults.meet("open to write" if change else "open", change=change)
        elif event in _CHANGES or event in _READS or event == _LOCK:
            folder = arguments[1] if event in ("os.remove", "os.rmdir") else -1
            if self._inside(arguments[0], folder):
                faults.meet(event, change=event not in _READS)

    def _inside(self, path: Any, folder: int = -1) -> bool:
        if isinstance(path, int):
            return self.holds(path)
        text = os.fsdecode(path) if path is not None else ""
        if folder != -1 and not text.startswith("/"):
            return self.holds(folder)
        return text.startswith(self.folder)

    def holds(self, descriptor: int) -> bool:
        """Whether an open file is one of those that are watched."""
        try:
            return str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(self.folder)
        except OSError:
            return False


_hooked: list[_System] = []


@contextmanager
def local_files(folder: Path) -> Iterator[Callable[[Faults], None]]:
    """Watch what is done with the files below a directory; gives what tells the faults to meet."""
    if not _hooked:
        _hooked.append(_System())
        sys.addaudithook(_hooked[0].hook)
    system = _hooked[0]
    system.folder = str(folder.resolve())
    kept = {name: getattr(os, name) for name in _WRAPPED if hasattr(os, name)}

    def use(faults: Faults) -> None:
        system.faults = faults

    try:
        for name, original in kept.items():
            setattr(os, name, _wrapped(system, name, original))
        with _exchanges(system):
            yield use
    finally:
        for name, original in kept.items():
            setattr(os, name, original)
        system.faults = None


def _wrapped(system: _System, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def function(descriptor: int, *arguments: Any) -> Any:
        faults, half = system.faults, None
        if faults is not None and faults.armed and system.holds(descriptor):
            if name == "pwrite":
                data, offset = memoryview(arguments[0]).cast("B"), arguments[1]

                def half() -> None:
                    original(descriptor, data[: len(data) // 16 * 8], offset)

            faults.meet(f"os.{name}", change=True, half=half)
        return original(descriptor, *arguments)

    return function


@contextmanager
def _exchanges(system: _System) -> Iterator[None]:
    """Watch the one change that Python has no function for: two directories swap their names."""
    library: Any = libc()
    original = getattr(library, "renameat2", None)
    if original is None:
        yield
        return

    def exchange(*arguments: Any) -> Any:
        if system.faults is not None:
            system.faults.meet("renameat2", change=True)
        return original(*arguments)

    library.renameat2 = exchange
    try:
        yield
    finally:
        library.renameat2 = original


def watched(base: type[Store], faults_of: Callable[[], Faults]) -> Any:
    """Subclass of a zarr store, each of whose operations is met first."""

    def awaited(name: str, change: bool) -> Any:
        async def method(self: Any, *arguments: Any, **options: Any) -> Any:
            faults_of().meet(name, change=change)
            return await getattr(base, name)(self, *arguments, **options)

        return method

    def direct(name: str, change: bool) -> Any:
        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            faults_of().meet(name, change=change)
            return getattr(base, name)(self, *arguments, **options)

        return method

    def listed(name: str) -> Any:
        async def method(self: Any, *arguments: Any) -> Any:
            faults_of().meet(name, change=False)
            async for key in getattr(base, name)(self, *arguments):
                yield key

        return method

    members: dict[str, Any] = {"delete_dir": Store.delete_dir}  # key by key
    for name in (*_SETTERS, *_GETTERS):
        if hasattr(base, name):
            make = direct if name.endswith("_sync") else awaited
            members[name] = make(name, name in _SETTERS)
    members |= {name: listed(name) for name in _LISTERS}
    return type(f"Watched{base.__name__}", (base,), members)
