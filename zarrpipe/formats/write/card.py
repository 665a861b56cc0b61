"""A card of a published store: Croissant, the JSON-LD that search engines of data sets read."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.data.validate import check_flag
from zarrpipe.dataset.info import info
from zarrpipe.dataset.store_info import FieldInfo, StoreInfo
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, StoreNotFoundError
from zarrpipe.formats.write.target import check_vacant, place_of
from zarrpipe.formats.write.written import Written
from zarrpipe.libraries import require
from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import Root

_VERSION = "http://mlcommons.org/croissant/1.1"
_ZARR = "application/vnd+zarr"
_FEW = 20


def write_card(
    store: str | Path,
    path: str | Path | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    license: str | None = None,  # noqa: A002  schema.org's word
    url: str | None = None,
    creators: Sequence[str] = (),
    cite_as: str | None = None,
    version: str | None = None,
    date_published: str | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a card of a published store beside it: Croissant 1.1, a JSON-LD document.

    It names the files of the store and their fields with levels, dtypes, shapes and units, and says
    how many samples have each. mlcroissant makes it and checks it. Write it anew when the store has
    changed: it has the checksum of the store's root document.

    Parameters
    ----------
    store : str or Path
        A local store.
    path : str or Path, optional
        The card, a file beside the store; by default ``<store>.croissant.json``.
    name, description : str, optional
        By default the name of the store, and a summary of its content.
    license, url, cite_as, version, date_published : str, optional
        The licence by its SPDX identifier or URL, where the data set is, BibTeX of what to cite, a
        version such as ``"1.0.0"``, and a date such as ``"2026-11-30"``.
    creators : sequence of str
        Names of people.
    overwrite : bool
        Whether a card that is there is replaced.

    Returns
    -------
    Written
        The path, the number of samples, and which recommended properties were not given.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    StoreExistsError
        If the card exists, and `overwrite` is False.
    ValueError
        If the store is not local, the card would not be beside it, or a property is not valid.
    ImportError
        If mlcroissant is not installed: ``pip install 'zarrpipe[import]'``.

    Examples
    --------
    >>> import tempfile, zarrpipe as zp
    >>> from pathlib import Path
    >>> store = Path(tempfile.mkdtemp()) / "helium.zarr"
    >>> with zp.ZarrData(store) as sink:
    ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [2], energy=-78.8))
    >>> written = zp.write_card(store, license="CC0-1.0", creators=["Ada Example"])
    >>> written.path.name, sorted(written.left_out)
    ('helium.zarr.croissant.json', ['cite_as', 'date_published', 'url', 'version'])
    """
    root = Root.of(store).directory
    if root is None:
        raise ArgumentError(f"{store!r} is not a local store: write the card beside a local copy")
    if not root.is_dir():
        raise StoreNotFoundError(f"there is no Zarr store at {root}")
    usual = root.with_name(f"{root.name}.croissant.json")
    place = usual if path is None else place_of(path)
    if place.parent.resolve() != root.parent.resolve():
        raise ArgumentError(
            f"path is {str(place)!r}, expected a file beside the store, in {root.parent}: the card "
            "names the files of the store from there"
        )
    check_vacant(place, (), overwrite=check_flag("overwrite", overwrite))
    facts, schema = info(root), ZarrDataset(root).schema
    given = {
        "license": license,
        "url": url,
        "cite_as": cite_as,
        "version": version,
        "date_published": date_published,
    }
    made = _Card(require("mlcroissant", "import"), root, facts)
    document = made.document(
        schema.values(),
        name=root.stem if name is None else name,
        description=_summary(facts) if description is None else description,
        creators=creators,
        **given,
    )
    files.replace(place, json.dumps(document, indent=2).encode())
    missing = {key: "it was not given" for key, value in given.items() if value is None}
    missing |= {} if creators else {"creators": "it was not given"}
    return Written(place, "croissant", facts.samples, missing)


class _Card:
    """The nodes of a card; all share the context in which mlcroissant checks them."""

    def __init__(self, library: Any, root: Path, facts: StoreInfo) -> None:
        self._library, self._root, self._facts = library, root, facts
        self._context = library.Context(conforms_to=_VERSION)
        self._known = {item.name: item for item in facts.fields}

    def document(
        self, schema: Iterable[Field], *, creators: Sequence[str], **properties: Any
    ) -> Any:
        """The card as JSON; raises `ArgumentError` for what Croissant does not allow."""
        items, library = [*schema], self._library
        levels = dict.fromkeys(item.level for item in items)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of rdflib, about itself
            try:
                made = library.Metadata(
                    ctx=self._context,
                    creators=[self._node("Person", name=one) for one in creators],
                    keywords=["atomistic", "interatomic potential", *self._facts.elements],
                    distribution=[
                        self._root_document(),
                        *(self._arrays(level, items) for level in levels),
                    ],
                    record_sets=[self._records(level, items) for level in levels],
                    **{key: value for key, value in properties.items() if value is not None},
                )
                document = json.loads(json.dumps(made.to_json(), default=str))
                # Only a document that is read is checked throughout.
                library.Metadata.from_json(ctx=library.Context(), json_=dict(document))
            except (library.ValidationError, ValueError, TypeError) as error:
                raise ArgumentError(f"the card is not valid Croissant: {error}") from error
        return document

    def _node(self, kind: str, **properties: Any) -> Any:
        return getattr(self._library, kind)(ctx=self._context, **properties)

    def _root_document(self) -> Any:
        document = self._root / "zarr.json"
        return self._node(
            "FileObject",
            id="zarr.json",
            name="zarr.json",
            description="Root of the Zarr group: levels, units, vocabularies of strings.",
            content_url=f"{self._root.name}/zarr.json",
            encoding_formats=["application/json"],
            sha256=hashlib.sha256(document.read_bytes()).hexdigest(),
        )

    def _arrays(self, level: Level, items: Sequence[Field]) -> Any:
        """Files of the arrays of a level."""
        own = [item.path for item in items if item.level == level]
        return self._node(
            "FileSet",
            id=f"{level}-arrays",
            name=f"{level}-arrays",
            encoding_formats=[_ZARR],
            includes=[f"{self._root.name}/{path}/**" for path in own],
        )

    def _records(self, level: Level, items: Sequence[Field]) -> Any:
        """The rows of a level, with a field for each array."""
        rows = "Row i belongs to sample i."
        if level.has_pointers:
            rows = f"Rows p[i] to p[i+1] belong to sample i, where p is the array {level.pointers}."
        return self._node(
            "RecordSet",
            id=str(level),
            name=str(level),
            description=f"One record for each {level}. {rows}",
            fields=[self._field(item) for item in items if item.level == level],
        )

    def _field(self, item: Field) -> Any:
        types = self._library.DataType
        text = item.categories is not None
        shape = ",".join(map(str, item.shape))
        return self._node(
            "Field",
            id=f"{item.level}/{item.name}",
            name=item.name,
            description=_described(item, self._known[item.name], self._facts.samples),
            data_types=[types.TEXT if text else getattr(types, item.dtype.name.upper())],
            **({"is_array": True, "array_shape": shape} if shape else {}),
            source=self._node(
                "Source",
                file_set=f"{item.level}-arrays",
                extract=self._node("Extract", file_property="content"),
            ),
        )


def _described(item: Field, known: FieldInfo, samples: int) -> str:
    """Unit, presence and meaning of a field."""
    parts = [f"Array {item.path}."]
    if item.unit:
        parts.append(f"Unit: {item.unit}.")
    if known.present < samples:
        parts.append(f"{known.present} of {samples} samples have it.")
    if item.index_of is not None:
        parts.append(f"Row numbers of {item.index_of}s of the store.")
    if item.categories is not None:
        shown = ", ".join(item.categories[:_FEW])
        more = len(item.categories) - _FEW
        tail = f" and {more} more" if more > 0 else ""
        parts.append(f"Numbers that stand for strings of the root document: {shown}{tail}.")
    return " ".join(parts)


def _summary(facts: StoreInfo) -> str:
    """What a store has, in two sentences."""
    elements = ", ".join(facts.elements)
    names = ", ".join(item.name for item in facts.fields)
    return (
        f"{facts.samples} atomic systems with {facts.atoms} atoms of {elements}, in Zarr v3. "
        f"Fields: {names}."
    )
