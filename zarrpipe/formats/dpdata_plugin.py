"""A plugin of dpdata, found by entry point: ``dpdata.LabeledSystem("x.zarr", fmt="zarrpipe")``.

dpdata has eV, eV/Angstrom, and virials as minus the volume times the stress, as stores have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dpdata.format import Format

from zarrpipe.errors import FieldError

if TYPE_CHECKING:
    from zarrpipe.data.batch import Batch
    from zarrpipe.dataset.zarr_dataset import ZarrDataset

Data = dict[str, Any]
"""Data of a system, by dpdata's names."""

_LABELS = {"energies": "energy", "forces": "forces", "virials": "virial"}


class _Kind(NamedTuple):
    """What the frames of a system have in common."""

    numbers: tuple[int, ...]
    periodic: bool
    labels: tuple[str, ...]


@Format.register("zarrpipe")
class ZarrPipeFormat(Format):  # type: ignore[misc]
    """Stores of zarrpipe.

    ``where`` is a condition that the samples to read have to meet. A system has the frames of one
    composition and one order of atoms; `MultiSystems` takes a store of several. ``if_exists`` says
    what `to` does with a store that has samples: "error", "append" or "replace".
    """

    def from_system(self, file_name: Any, where: str | None = None, **_: Any) -> Data:
        """Structures of a store."""
        return _one_system(_opened(file_name, where), labeled=False)

    def from_labeled_system(self, file_name: Any, where: str | None = None, **_: Any) -> Data:
        """Structures of a store with energies, and with forces and virials where it has them."""
        return _one_system(_opened(file_name, where), labeled=True)

    def from_multi_systems(
        self, directory: Any, where: str | None = None, **_: Any
    ) -> Iterator[ZarrDataset]:
        """Samples of a store by composition and order of the atoms."""
        dataset = _opened(directory, where)
        groups = _grouped(dataset)
        _check_compositions(groups)
        for rows in groups.values():
            yield dataset.index_select(rows)

    def to_system(self, data: Data, file_name: Any, if_exists: str = "error", **_: Any) -> None:
        """Write the frames of a system to a store."""
        from zarrpipe.sink import ZarrData  # noqa: PLC0415  importing dpdata is to stay fast

        if isinstance(file_name, ZarrData):
            file_name.write(_batch(data))
            return
        with ZarrData(file_name, if_exists=if_exists) as sink:  # type: ignore[arg-type]
            sink.write(_batch(data))

    def to_multi_systems(
        self, formulas: list[str], directory: Any, if_exists: str = "error", **_: Any
    ) -> Iterator[Any]:
        """One store for all systems."""
        from zarrpipe.sink import ZarrData  # noqa: PLC0415  importing dpdata is to stay fast

        with ZarrData(directory, if_exists=if_exists) as sink:  # type: ignore[arg-type]
            for _formula in formulas:
                yield sink


def _opened(source: Any, where: str | None) -> ZarrDataset:
    from zarrpipe.dataset.zarr_dataset import ZarrDataset  # noqa: PLC0415  as above

    return source if isinstance(source, ZarrDataset) else ZarrDataset(source, where=where)


def _grouped(dataset: ZarrDataset) -> dict[_Kind, list[int]]:
    """Positions of the samples of each kind."""
    from zarrpipe.adapters.streams import stream_batches  # noqa: PLC0415  as above

    groups: dict[_Kind, list[int]] = {}
    first = 0
    for batch in stream_batches(dataset):
        ends, numbers = batch.batch_ptr.tolist(), batch.atomic_numbers.tolist()
        periodic = _periodic(batch)
        has = {label: batch.has(name).tolist() for label, name in _LABELS.items()}
        has["virials"] = (batch.has("virial") | batch.has("stress") & batch.has("cell")).tolist()
        for index in range(batch.num_graphs):
            labels = tuple(label for label, mask in has.items() if mask[index])
            own = tuple(numbers[ends[index] : ends[index + 1]])
            groups.setdefault(_Kind(own, periodic[index], labels), []).append(first + index)
        first += batch.num_graphs
    return groups


def _periodic(batch: Batch) -> list[bool]:
    """Which systems are periodic in a direction: dpdata knows all directions or none."""
    if "pbc" not in batch:
        return [False] * batch.num_graphs
    found: list[bool] = (batch.pbc.any(1) & batch.present("pbc")).tolist()
    return found


def _check_compositions(groups: Mapping[_Kind, Any]) -> None:
    """Refuse samples of one composition that dpdata cannot have in one system."""
    seen: dict[tuple[int, ...], _Kind] = {}
    for kind in groups:
        other = seen.setdefault(tuple(sorted(kind.numbers)), kind)
        if (kind.periodic, kind.labels) != (other.periodic, other.labels):
            first, second = (_told(one) for one in (other, kind))
            raise FieldError(
                f"samples of {len(kind.numbers)} atoms of one composition have {first}, and others "
                f"{second}, which are one system for dpdata: choose by a condition, as in "
                "where='has(forces) and has(energy)'"
            )


def _told(kind: _Kind) -> str:
    labels = ", ".join(kind.labels) or "no labels"
    return f"{labels} and {'' if kind.periodic else 'no '}periodicity"


def _one_system(dataset: ZarrDataset, *, labeled: bool) -> Data:
    """All samples of a dataset as the frames of one system."""
    groups = _grouped(dataset)
    orders = {kind.numbers for kind in groups}
    if len(orders) != 1 or len({kind.periodic for kind in groups}) != 1:
        raise FieldError(
            f"{len(dataset)} samples have {len(orders)} sequences of elements, with and without "
            "periodicity: a system of dpdata has one; read them with dpdata.MultiSystems()"
            ".from_fmt(..., fmt='zarrpipe'), or choose by where="
        )
    if labeled:
        _check_labels(groups)
    batch = dataset.read(slice(None))
    return _data(batch, next(iter(groups)), labeled=labeled)


def _check_labels(groups: Mapping[_Kind, list[int]]) -> None:
    """Refuse labels that some frames lack, and a system without energies."""
    for label, name in _LABELS.items():
        lacking = sum(len(rows) for kind, rows in groups.items() if label not in kind.labels)
        whole = sum(map(len, groups.values()))
        if lacking and (label == "energies" or lacking < whole):
            raise FieldError(
                f"{lacking} of {whole} samples have no {label}, and dpdata has labels of all "
                f"frames or of none: choose by where='has({name})'"
            )


def _data(batch: Batch, kind: _Kind, *, labeled: bool) -> Data:
    from dpdata.periodic_table import ELEMENTS  # noqa: PLC0415  as above

    count, size = batch.num_graphs, len(kind.numbers)
    names = [*dict.fromkeys(ELEMENTS[number - 1] for number in kind.numbers)]
    types = np.array([names.index(ELEMENTS[number - 1]) for number in kind.numbers])
    cells = np.zeros((count, 3, 3))
    if "cell" in batch:
        cells = np.where(batch.present("cell").numpy()[:, None, None], batch.cell.numpy(), 0.0)
    data = {
        "atom_names": names,
        "atom_numbs": np.bincount(types).tolist(),
        "atom_types": types,
        "orig": np.zeros(3),
        "cells": cells.astype(np.float64),
        "coords": _frames(batch.positions, count, size),
        "nopbc": not kind.periodic,
    }
    if not labeled:
        return data
    data["energies"] = batch.energy.numpy().astype(np.float64).reshape(count)
    if "forces" in kind.labels:
        data["forces"] = _frames(batch.forces, count, size)
    if "virials" in kind.labels:
        data["virials"] = _virials(batch)
    return data


def _frames(values: Any, count: int, size: int) -> Any:
    return values.numpy().astype(np.float64).reshape(count, size, 3)


def _virials(batch: Batch) -> Any:
    """Virials [B, 3, 3], from the stresses where they are not stored."""
    found = np.full((batch.num_graphs, 3, 3), np.nan)
    if "stress" in batch and "cell" in batch:
        cells = batch.cell.numpy().astype(np.float64)
        found = -np.abs(np.linalg.det(cells))[:, None, None] * batch.stress.numpy()
    if "virial" in batch:
        has = batch.present("virial").numpy()
        found[has] = batch.virial.numpy()[has]
    return found


def _batch(data: Data) -> Batch:
    """Frames of a system as a batch."""
    import torch  # noqa: PLC0415  importing dpdata is to stay fast
    from dpdata.periodic_table import ELEMENTS  # noqa: PLC0415

    from zarrpipe.data.batch import Batch  # noqa: PLC0415

    if "real_atom_types" in data:
        raise FieldError(
            "the system is of dpdata's mixed type, whose atom names stand for no elements: read it "
            "as MultiSystems first"
        )
    numbers = np.array([ELEMENTS.index(name) + 1 for name in data["atom_names"]])
    coords = np.asarray(data["coords"]) - np.asarray(data["orig"])
    count, size = coords.shape[:2]
    fields = {
        "positions": coords.reshape(-1, 3),
        "atomic_numbers": np.tile(numbers[np.asarray(data["atom_types"])], count),
        "cell": np.asarray(data["cells"], dtype=np.float64),
        "pbc": np.full((count, 3), not data.get("nopbc", False)),
    }
    shapes = {"energies": (count, 1), "forces": (-1, 3), "virials": (count, 3, 3)}
    for label, shape in shapes.items():
        if label in data:
            fields[_LABELS[label]] = np.asarray(data[label], dtype=np.float64).reshape(shape)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(own)) for name, own in fields.items()}
    return Batch(tensors, torch.arange(count + 1) * size)
