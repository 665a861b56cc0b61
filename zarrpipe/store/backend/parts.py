"""Parts: the stores of several writers below one parent group."""

from __future__ import annotations

import json
import re
from pathlib import Path

import zarr
from zarr.buffer import default_buffer_prototype
from zarr.storage import StorePath

from zarrpipe.compat import sync
from zarrpipe.errors import (
    ArgumentError,
    StoreExistsError,
    StoreFormatError,
    StoreNotFoundError,
    StoreReadOnlyError,
)
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.format.metadata import parent_attributes

_PREFIX = "part-"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_DOCUMENT = "zarr.json"


def checked_part_name(name: object) -> str:
    """Name of a part; raises ArgumentError for one that a part cannot have."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArgumentError(
            f"part={name!r}, expected 'auto' or a name of 1 to 100 letters, digits, '.', '_' and "
            "'-', such as part='walker-3'"
        )
    return name


def part_store(store: StoreLike, name: str) -> StoreLike:
    """Place of a part of the parent at a place."""
    folder = f"{_PREFIX}{name}"
    if isinstance(store, str) and "://" in store:
        if "::" not in store and "?" not in store:
            return f"{store.rstrip('/')}/{folder}"
    elif isinstance(store, Path):
        return store / folder
    elif isinstance(store, str):
        return str(Path(store) / folder)
    path = Root.of(store).path
    return StorePath(path.store, f"{path.path}/{folder}".lstrip("/"))


def natural_order(name: str) -> tuple[tuple[str | int, ...], str]:
    """Key by which part-2 comes before part-10."""
    pieces = re.split(r"([0-9]+)", name)
    return tuple(int(one) if place % 2 else one for place, one in enumerate(pieces)), name


def part_names(root: Root) -> list[str]:
    """Names of the parts of a parent in natural order, those without a root group yet included.

    Raises StoreFormatError for a store that cannot be listed.
    """
    return sorted(filter(_NAME.fullmatch, member_names(root, _PREFIX)), key=natural_order)


def member_names(root: Root, prefix: str) -> list[str]:
    """Names, without it, of what is directly in a parent and begins with a prefix; see above."""
    if root.directory is not None:
        entries = [entry.name for entry in root.directory.iterdir()]
    elif not root.path.store.supports_listing:
        raise StoreFormatError(
            f"{root} is a parent of parts on a store that cannot be listed: give its parts one by "
            "one"
        )
    else:
        entries = sync(_listed(root.path))
    found = {one.strip("/").rpartition("/")[2] for one in entries}
    return [one.removeprefix(prefix) for one in found if one.startswith(prefix)]


async def _listed(path: StorePath) -> list[str]:
    """Names of what is directly below a path."""
    return [name async for name in path.store.list_dir(path.path)]


def is_parent(group: zarr.Group) -> bool:
    """Whether a group is the parent of parts."""
    own = group.attrs.asdict().get("zarrpipe")
    return isinstance(own, dict) and "parts" in own


def parts(store: StoreLike) -> dict[str, StoreLike]:
    """Places of the parts of a parent, by name.

    Each part is a store. What works on one store, such as `zarrpipe.check` and `zarrpipe.compact`,
    works on a part.

    Parameters
    ----------
    store : StoreLike
        A parent of parts; see ``ZarrData(..., part=)``.

    Returns
    -------
    dict of str to StoreLike
        Place of each part that exists, in the order in which `ZarrDataset` opens them; empty for a
        store without parts.

    Raises
    ------
    StoreNotFoundError
        If there is neither a store nor a parent.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> run = {}
    >>> for name in ("10", "2"):
    ...     with zp.ZarrData(run, part=name) as sink:
    ...         sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [2]))
    >>> list(zp.parts(run)), len(zp.ZarrDataset(run))
    (['2', '10'], 2)
    """
    root = Root.of(store)
    group = root.open_group()
    if group is None:
        raise StoreNotFoundError.at(root)
    names = part_names(root) if is_parent(group) else []
    places = {name: part_store(store, name) for name in names}
    return {
        name: place for name, place in places.items() if Root.of(place).open_group() is not None
    }


def ensure_parent(root: Root) -> None:
    """Create the parent of parts if it does not exist; others may do so at the same moment.

    Raises StoreExistsError if there is a store, a foreign group or other content.
    """
    if _exists(root):
        return
    if root.read_only:
        raise StoreReadOnlyError(f"{root} was opened read-only: open it for writing")
    if root.directory is not None and root.directory.is_dir():
        others = sorted(
            entry.name
            for entry in root.directory.iterdir()
            if entry.name[0] != "." and entry.suffix != ".partial" and entry.name != _DOCUMENT
        )
        if others and not _exists(root):
            raise StoreExistsError(
                f"{root} is a directory with other things in it ({', '.join(others[:3])}) and no "
                f"parts: give the parts a directory of their own, such as "
                f"{root.directory / 'data.zarr'}"
            )
    content = {"attributes": parent_attributes(), "zarr_format": 3, "node_type": "group"}
    document = json.dumps(content, indent=2).encode()
    sync(
        (root.path / _DOCUMENT).set_if_not_exists(
            default_buffer_prototype().buffer.from_bytes(document)
        )
    )
    if not _exists(root):
        raise StoreFormatError(f"{root} was removed while its parts were created: try again")


def _exists(root: Root) -> bool:
    """Whether there is a parent of parts; raises StoreExistsError for another group."""
    group = root.open_group()
    if group is None:
        return False
    if not is_parent(group):
        ours = "zarrpipe" in group.attrs
        found = "a store itself" if ours else "a group that zarrpipe did not write"
        raise StoreExistsError(
            f"{root} is {found}, so that it cannot have parts: open it without part=, or give the "
            "parts another place; ZarrDataset reads several places as one"
        )
    return True
