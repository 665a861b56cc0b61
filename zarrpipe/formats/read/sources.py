"""The files of an import: names, globs and directories, and the reader of each."""

import glob
import importlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from zarrpipe.errors import ArgumentError, ArgumentTypeError, StoreNotFoundError
from zarrpipe.formats.read.frames import Reader

SourceLike = str | Path

STDIN = "-"


class Source(NamedTuple):
    """A file, directory or store, the reader of its format, and its size in bytes."""

    path: str
    reader: Reader
    nbytes: int


class Format(NamedTuple):
    """A format: its name, the class of its reader, and how it is recognised.

    `suffixes` are ends of names; `recognises` is the name of a function beside the class that
    looks at a place, and "" where the suffix says all. `has_levels` says whether the reader may be
    told the levels of keys, and `variant` is the library's own name of a format.
    """

    name: str
    reader: str
    suffixes: tuple[str, ...] = ()
    recognises: str = ""
    has_levels: bool = False
    variant: str = ""

    def load(self, levels: Mapping[str, str]) -> Reader:
        """Import the reader."""
        module, _, name = self.reader.partition(":")
        cls = getattr(importlib.import_module(f"zarrpipe.formats.read.{module}"), name)
        options: dict[str, Any] = {"levels": levels} if levels and self.has_levels else {}
        found: Reader = cls(**options, **({"format": self.variant} if self.variant else {}))
        return found

    def takes(self, path: Path) -> bool:
        """Whether a place has this format."""
        if self.suffixes and not path.name.lower().endswith(self.suffixes):
            return False
        if not self.recognises:
            return bool(self.suffixes) and path.is_file()
        module = importlib.import_module(f"zarrpipe.formats.read.{self.reader.partition(':')[0]}")
        return bool(getattr(module, self.recognises)(path))


_DATABASES = (".db", ".json", ".aselmdb")
FORMATS = (
    Format("zarr", "files.stores:StoreReader", recognises="is_store"),
    Format("extxyz", "files.extxyz:ExtXYZ", (".xyz", ".extxyz")),
    Format("db", "files.ase_database:AseDatabase", _DATABASES, "recognises", has_levels=True),
    Format("mace", "files.hdf5:MaceHdf5", (".h5", ".hdf5"), "recognises", has_levels=True),
    Format("metatrain", "files.memmap:MetatrainMemmap", (), "recognises", has_levels=True),
    Format("pyg", "files.pyg_files:PygFiles", (".pt", ".pth"), "recognises", has_levels=True),
    Format("pyg-trusted", "files.pyg_files:TrustedPygFiles", has_levels=True),
    Format("atompack", "files.atompack_files:AtompackFiles", (), "recognises"),
    Format("dpdata", "files.dpdata_systems:DpdataSystems", (), "recognises"),
    Format("ase", "files.ase_files:AseFiles", (), "recognises"),
)
"""All formats; the first that takes a place reads it."""

_WITH_VARIANTS = ("ase", "dpdata")


def find_sources(
    sources: SourceLike | Sequence[SourceLike],
    format_name: str | None,
    stack: ExitStack,
    levels: Mapping[str, str] = MappingProxyType({}),
    target: object = None,
) -> tuple[list[Source], list[str]]:
    """Sources in order, and the files of directories that no reader takes.

    A name may be a glob or a directory; "-" is the standard input, which is copied to a temporary
    file that `stack` removes. `levels` are of keys, for readers whose formats do not say them. The
    `target` of the import is no source; raises ArgumentError if it is named as one.
    """
    given = _listed(sources)
    only = None if format_name is None else _named(format_name)
    here = Path(target).resolve() if isinstance(target, str | Path) else None
    found: dict[Path, Source] = {}
    unknown: list[str] = []
    for item in given:
        if here is not None and item != STDIN and Path(item).resolve() == here:
            raise ArgumentError(f"{item} is both a source and the store to write: name another")
        for path in _places(item, only, stack):
            row = only or next((row for row in FORMATS if row.takes(path)), None)
            if row is None:
                raise _not_recognised(path)
            if path.resolve() != here:
                source = Source(str(path), row.load(levels), _size(path))
                found.setdefault(path.resolve(), source)
        if Path(item).is_dir() and Path(item).resolve() not in found:
            unknown += [str(path) for path in _files(Path(item)) if path.resolve() not in found]
    return list(found.values()), [path for path in unknown if Path(path).resolve() != here]


def _listed(sources: object) -> list[SourceLike]:
    """Sources as a list."""
    given = [*sources] if isinstance(sources, list | tuple) else [sources]
    paths = [item for item in given if isinstance(item, str | Path)]
    if not paths or len(paths) < len(given):
        raise ArgumentTypeError(f"sources={sources!r}, expected a path, or a list of paths")
    return paths


def _named(name: str) -> Format:
    base, colon, variant = name.partition(":")
    row = next((row for row in FORMATS if row.name == base), None)
    if row is None or (colon and not (variant and base in _WITH_VARIANTS)):
        names = ", ".join(row.name for row in FORMATS)
        raise ArgumentError(
            f"format={name!r}, expected one of {names}, or a library's own name for it, such as "
            "ase:vasp-out or dpdata:vasp/outcar"
        )
    return row._replace(variant=variant)


def _places(item: SourceLike, only: Format | None, stack: ExitStack) -> Iterator[Path]:
    """Places of one name, of which each is a source."""
    if item == STDIN:
        yield _spooled(only, stack)
        return
    path = Path(item)
    if not path.exists():
        names = sorted(glob.glob(str(item), recursive=True))  # noqa: PTH207  of any root
        if not names:
            raise StoreNotFoundError(f"there is no file {str(item)!r}, nor one that it matches")
        for name in names:
            yield from _places(name, only, stack)
    elif path.is_file() or only is not None or any(row.takes(path) for row in FORMATS):
        yield path
    else:
        inside = [file for file in _files(path) if any(row.takes(file) for row in FORMATS)]
        if not inside:
            raise _not_recognised(path)
        yield from inside


def _files(directory: Path) -> list[Path]:
    """Files and sources in a directory, at any depth, without those inside of sources."""
    found: list[Path] = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name.endswith("-lock"):  # of LMDB
            continue
        whole = path.is_file() or any(row.takes(path) for row in FORMATS)
        inside = path.is_dir() and not path.is_symlink()  # a link may lead in a circle
        found += [path] if whole else _files(path) if inside else []
    return found


def _spooled(only: Format | None, stack: ExitStack) -> Path:
    """Copy of the standard input, as a file that can be read twice and in parts."""
    suffix = only.suffixes[-1] if only and only.suffixes else ".extxyz"
    file = stack.enter_context(tempfile.NamedTemporaryFile(suffix=suffix))  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, file)
    file.flush()
    return Path(file.name)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _not_recognised(path: Path) -> ArgumentError:
    names = ", ".join(row.name for row in FORMATS)
    return ArgumentError(
        f"the format of {path} is not recognised: name it by format (--format), one of {names}"
    )
