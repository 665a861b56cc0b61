"""Damage to the files of a store: what each kind does, drawn from a generator."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator

_STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    7,
    2**31,
    2**53 + 1,
    2**62,
    2**63,
    10**30,
    -(2**63),
    1e308,
    0.5,
    "",
    "zz",
    "NaN",
    "../..",
    "a/b",
    "object",
    "string",
    "complex128",
    "datetime64",
    ">f4",
    "int8",
    "float64",
    "bool",
    "r64",
    "numcodecs.pickle",
    "zstd",
    "array",
    "group",
    "atom",
    "system",
    [],
    [0],
    [1, 1],
    [2**40],
    [2**31, 2**31, 2**31],
    {},
    {"name": "numcodecs.pickle", "configuration": {}},
    {"core": {"energy": "atom"}},
)


def damage(store: Path, rng: Rng) -> str:
    """Damage a store in one to three places; what was done, for people."""
    count = 1 + int(rng.integers(3)) * int(rng.integers(2))
    return "; ".join(_once(store, rng) for _ in range(count))


def _once(store: Path, rng: Rng) -> str:
    weights = np.array([weight for weight, _ in KINDS.values()], dtype=np.float64)
    name = [*KINDS][int(rng.choice(len(weights), p=weights / weights.sum()))]
    done = KINDS[name][1](store, rng)
    return f"{name}: {done}"


def _files(store: Path, *, documents: bool | None = None) -> list[Path]:
    """Files of a store: its documents, what is none of them, or all."""
    found = sorted(path for path in store.rglob("*") if path.is_file() or path.is_symlink())
    found = [path for path in found if path.name != ".lock"]
    if documents is None:
        return found
    return [path for path in found if (path.suffix == ".json") is documents]


def _pick(files: list[Path], rng: Rng) -> Path | None:
    return files[int(rng.integers(len(files)))] if files else None


def _document(store: Path, rng: Rng) -> Path | None:
    """A document that can be read to its end: no link to a device, no FIFO."""
    path = _pick(_files(store, documents=True), rng)
    return path if path is not None and path.is_file() else None


def _flip(path: Path, rng: Rng) -> None:
    """Change some bytes, most often near the beginning, where the rows are."""
    if not path.is_file() or not (size := path.stat().st_size):
        return
    with path.open("r+b") as file:
        for _ in range(1 + int(rng.integers(4))):
            within = min(size, int(rng.choice([64, 512, 4096, size])))
            offset = int(rng.integers(within))
            file.seek(offset)
            old = file.read(1)[0]
            new = int(
                rng.choice(np.array([0, 255, old ^ (1 << int(rng.integers(8))), rng.integers(256)]))
            )
            file.seek(offset)
            file.write(bytes([new]))


def _flip_chunk(store: Path, rng: Rng) -> str:
    fields = [path for path in _files(store, documents=False) if "meta" not in path.parts]
    return _flipped(store, _pick(fields, rng), rng)


def _flip_meta(store: Path, rng: Rng) -> str:
    meta = [path for path in _files(store, documents=False) if "meta" in path.parts]
    return _flipped(store, _pick(meta, rng), rng)


def _flip_document(store: Path, rng: Rng) -> str:
    return _flipped(store, _pick(_files(store, documents=True), rng), rng)


def _flipped(store: Path, path: Path | None, rng: Rng) -> str:
    if path is None:
        return "nothing"
    _flip(path, rng)
    return str(path.relative_to(store))


def _pointer(store: Path, rng: Rng) -> str:
    """Write a number over an entry of uncompressed pointers."""
    name = str(rng.choice(["atoms_ptr", "edges_ptr"]))
    path = store / "meta" / name / "c" / "0"
    if not path.is_file() or path.stat().st_size < 64:
        return "nothing"
    entry = int(rng.integers(min(path.stat().st_size // 8, 72)))
    value = int(rng.choice([0, 1, -1, 5, 10**15, 2**62, -(2**63), 100, 200]))
    with path.open("r+b") as file:
        file.seek(8 * entry)
        file.write(np.int64(value).tobytes())
    return f"{name}[{entry}] = {value}"


def _remove(store: Path, rng: Rng) -> str:
    path = _pick(_files(store), rng)
    if path is None:
        return "nothing"
    path.unlink()
    return str(path.relative_to(store))


def _resize(store: Path, rng: Rng) -> str:
    path = _pick([path for path in _files(store) if path.is_file()], rng)
    if path is None:
        return "nothing"
    size = path.stat().st_size
    sizes = [0, 1, size // 2, max(size - 1, 0), size + 1, size + 4096, 2 * size]
    size = int(rng.choice(sizes))
    os.truncate(path, size)
    return f"{path.relative_to(store)} to {size} bytes"


def _swap(store: Path, rng: Rng) -> str:
    files = _files(store)
    one, two = _pick(files, rng), _pick(files, rng)
    if one is None or two is None or one == two:
        return "nothing"
    other = one.with_name("swapped")
    one.rename(other)
    two.rename(one)
    other.rename(two)
    return f"{one.relative_to(store)} and {two.relative_to(store)}"


def _replace(store: Path, rng: Rng) -> str:
    """Put something that is no file of a store in the place of one."""
    path = _pick(_files(store), rng)
    if path is None:
        return "nothing"
    what = str(rng.choice(["zero", "null", "nowhere", "loop", "fifo", "socket", "folder", "copy"]))
    content = path.read_bytes() if path.is_file() else b""
    path.unlink()
    if what in ("zero", "null"):
        path.symlink_to(f"/dev/{what}")
    elif what in ("nowhere", "loop"):
        path.symlink_to(path if what == "loop" else path.with_name("nowhere"))
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        _socket(path)
    elif what == "folder":
        path.mkdir()
    else:  # as git-annex keeps content
        kept = store.with_name(f"{store.name}.annex")
        kept.write_bytes(content)
        path.symlink_to(kept)
    return f"{path.relative_to(store)} by {what}"


def _socket(path: Path) -> None:
    """Make a socket, by a short name: the system takes no long one."""
    here = os.getcwd()  # noqa: PTH109  the process is a child of its own
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _edit(store: Path, rng: Rng) -> str:
    """Change, remove or rename one entry of a document, at any depth."""
    path = _document(store, rng)
    if path is None:
        return "nothing"
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError):
        return "nothing"
    places = list(_places(content))
    if not places:
        return "nothing"
    holder, key = places[int(rng.integers(len(places)))]
    how = str(rng.choice(["set", "set", "set", "near", "remove", "double"]))
    told = f"{path.relative_to(store)} {key}"
    if how == "remove":
        del holder[key]
    elif how == "double" and isinstance(holder, dict):
        holder[f"{key}x"] = holder[key]
    elif how == "near" and type(holder[key]) is int:
        holder[key] += int(rng.choice([-1, 1, 2, 64, 65536]))
        how = f"= {holder[key]}"
    else:
        holder[key] = _STRANGE[int(rng.integers(len(_STRANGE)))]
        how = f"= {str(holder[key])[:60]}"
    path.write_text(json.dumps(content))
    return f"{told} {how}"


def _places(content: Any) -> Any:
    """Every holder and key of a document."""
    entries: Any = ()
    if isinstance(content, dict):
        entries = list(content.items())
    elif isinstance(content, list):
        entries = list(enumerate(content))
    for key, value in entries:
        yield content, key
        yield from _places(value)


def _text(store: Path, rng: Rng) -> str:
    """Put a text that is no document of Zarr in the place of one."""
    path = _document(store, rng)
    if path is None:
        return "nothing"
    texts = [
        "",
        "{",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        '{"a": 1e999}',
        "9" * 5000,
        "\ufeff{}",
        "\0",
    ]
    text = texts[int(rng.integers(len(texts)))]
    path.write_text(text)
    return f"{path.relative_to(store)} = {text[:10]!r}"


Kind = Callable[[Path, Rng], str]

KINDS: dict[str, tuple[float, Kind]] = {
    "edit": (6, _edit),
    "flip document": (2, _flip_document),
    "text": (0.5, _text),
    "flip chunk": (2, _flip_chunk),
    "flip meta": (3, _flip_meta),
    "pointer": (3, _pointer),
    "remove": (2, _remove),
    "resize": (2, _resize),
    "swap": (1, _swap),
    "replace": (2, _replace),
}
"""Weight and function of each kind of damage."""
