"""A disk that loses its power: file operations are recorded, and replayed as far as they arrived.

What was synced is there. Of what was not, any part may be: single sectors of a write, a size, a
name in a directory or its removal, in any choice, since nothing orders them but a sync.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from zarrpipe.store.backend import files

SECTOR = 512


@dataclass
class Change:
    """One change that reaches the disk as a whole or not at all.

    `place` is the inode that a sync has to name: the file's own, or its directory's.
    """

    place: int
    apply: tuple
    at: int
    synced: int | None = None


@dataclass
class Disk:
    """What is on a disk: content of files and names in directories, by inode."""

    files: dict[int, bytearray] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})

    def apply(self, kind, inode, *rest):
        if kind == "write":
            offset, data = rest
            content = self.files.setdefault(inode, bytearray())
            content[offset : offset + len(data)] = data[: max(len(content) - offset, 0)]
        elif kind == "size":
            content = self.files.setdefault(inode, bytearray())
            content[rest[0] :] = bytes(max(rest[0] - len(content), 0))
        elif kind == "folder":
            self.folders.setdefault(inode, {})
        elif kind == "names":
            for name, target in rest[0].items():
                names = self.folders.setdefault(inode, {})
                names.pop(name, None) if target is None else names.__setitem__(name, target)

    def lay_out(self, folder: Path, inode: int = 0) -> None:
        """Make what is there below a directory."""
        folder.mkdir()
        for name, target in self.folders[inode].items():
            if target in self.folders:
                self.lay_out(folder / name, target)
            else:
                (folder / name).write_bytes(self.files.get(target, b""))


class Recorder:
    """Carries out and records every change below a directory that goes through `files`."""

    def __init__(self, base: Path, monkeypatch) -> None:
        self.base, self.log, self.operations = base, [], 0
        self._names, self._open, self._inode = {0: {}}, {}, 0
        self._lock = Lock()
        for name in ("create", "reopen", "open_or_create"):
            monkeypatch.setattr(files, name, self._opening(getattr(files, name)))
        for name in ("write_at", "resize", "rename", "link", "unlink", "make_folder",
                     "remove_folder", "sync_data", "sync_path"):  # fmt: skip
            monkeypatch.setattr(files, name, self._recorded(getattr(files, name), name))

    def _opening(self, operation):
        def open_it(path):
            known = self._find(path)
            descriptor = operation(path)
            with self._lock:
                inode = self._find(path) if known is None else known
                if inode is None:
                    inode = self._new()
                    self._name(path, inode)
                    self._add(inode, ("size", inode, 0))
                elif operation.__name__ == "create":
                    self._add(inode, ("size", inode, 0))
                self._open[descriptor] = inode
            return descriptor

        return open_it

    def _recorded(self, operation, name):
        def change(*arguments):
            if name.startswith("sync"):  # what is written while it goes on is not in it
                with self._lock:
                    before = len(self.log)
                    at = (
                        self._open[arguments[0]]
                        if name == "sync_data"
                        else self._find(arguments[0])
                    )
                operation(*arguments)
                with self._lock:
                    self.operations += 1
                    self._sync(at, before)
                return
            target = self._open.get(arguments[0]) if name in ("write_at", "resize") else None
            operation(*arguments)
            with self._lock:
                self.operations += 1
                getattr(self, f"_{name}")(
                    *arguments, **({} if target is None else {"inode": target})
                )

        return change

    def _write_at(self, descriptor, data, offset, inode):
        content = bytes(data.cast("B")) if data.nbytes else b""
        end = os.fstat(descriptor).st_size
        if offset + len(content) == end:
            self._add(inode, ("size", inode, end))
        start = 0
        while start < len(content):
            stop = start + SECTOR - (offset + start) % SECTOR
            self._add(inode, ("write", inode, offset + start, content[start:stop]))
            start = stop

    def _resize(self, descriptor, size, inode):
        del descriptor
        self._add(inode, ("size", inode, size))

    def _rename(self, source, target):
        inode, folder = self._find(source), self._folder(source.parent)
        assert source.parent == target.parent
        self._change(folder, {target.name: inode, source.name: None})

    def _link(self, source, target):
        self._name(target, self._find(source))

    def _unlink(self, path):
        self._change(self._folder(path.parent), {path.name: None})

    _remove_folder = _unlink

    def _make_folder(self, path):
        self._folder(path)

    def _sync(self, inode, before):
        for change in self.log[:before]:
            if change.place == inode and change.synced is None:
                change.synced = self.operations

    def _new(self):
        self._inode += 1
        return self._inode

    def _add(self, place, apply):
        self.log.append(Change(place, apply, self.operations))

    def _change(self, folder, names):
        for name, inode in names.items():
            self._names[folder].pop(name, None) if inode is None else (
                self._names[folder].__setitem__(name, inode)
            )
        self._add(folder, ("names", folder, names))

    def _name(self, path, inode):
        self._change(self._folder(path.parent), {path.name: inode})

    def _folder(self, path):
        """Inode of a directory, which may have been made by others than `files`."""
        inode = 0
        for name in path.relative_to(self.base).parts:
            inner = self._names[inode].get(name)
            if inner is None:
                inner = self._new()
                self._names[inner] = {}
                self._add(inner, ("folder", inner))
                self._change(inode, {name: inner})
            inode = inner
        return inode

    def _find(self, path):
        """Inode at a path, or None; -1 for what is not below the directory."""
        if not path.is_relative_to(self.base):
            return -1
        inode = 0
        for name in path.relative_to(self.base).parts:
            inode = self._names.get(inode, {}).get(name)
            if inode is None:
                return None
        return inode

    def after_power_loss(self, operations: int, share: float, rng: np.random.Generator) -> Disk:
        """Disk once power was lost after a number of operations.

        Parameters
        ----------
        operations
            How many were carried out.
        share
            Of the changes that were not synced, which part arrived.
        rng
            Chooses them.
        """
        disk = Disk()
        for change in self.log:
            if change.at > operations:
                break
            certain = change.synced is not None and change.synced <= operations
            if certain or change.apply[0] == "folder" or rng.random() < share:
                disk.apply(*change.apply)
        return disk
