"""ASE's SQLite database, PyG's InMemoryDataset, atompack and nvalchemi."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zarrpipe as zp
from benchmarks.data import ATOM_ROWS, AnyArray, Int64Array, Samples
from benchmarks.engines.base import Engine, ListReader, collate
from benchmarks.engines.ours import STORE, write_store
from zarrpipe.adapters import nvalchemi_dataset

_ASE_FIELDS = ("positions", "atomic_numbers", "forces", "energy", "cell", "pbc")


def _write_ase(samples: Samples, directory: Path) -> None:
    from ase import Atoms  # noqa: PLC0415  optional
    from ase.calculators.singlepoint import SinglePointCalculator  # noqa: PLC0415  optional
    from ase.db import connect  # noqa: PLC0415  optional

    with connect(str(directory / "samples.db")) as database:
        for record in samples.records():
            atoms = Atoms(
                record["atomic_numbers"],
                record["positions"],
                cell=record["cell"][0],
                pbc=record["pbc"][0],
            )
            atoms.calc = SinglePointCalculator(
                atoms, energy=float(record["energy"][0, 0]), forces=record["forces"]
            )
            others = {name: values for name, values in record.items() if name not in _ASE_FIELDS}
            database.write(atoms, data=others)


class AseReader(ListReader):
    """A query per sample."""

    def __init__(self, directory: Path) -> None:
        from ase.db import connect  # noqa: PLC0415  optional

        self._database = connect(str(directory / "samples.db"))

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        with self._database:
            return collate([self._record(self._database.get(id=i + 1)) for i in request])

    def _record(self, row: Any) -> dict[str, AnyArray]:
        return {
            "positions": row.positions,
            "atomic_numbers": row.numbers,
            "forces": row.forces,
            "energy": np.array([[row.energy]]),
            "cell": row.cell[None],
            "pbc": row.pbc[None],
            **row.data,
        }


_PYG_NAMES = {
    "positions": "pos",
    "atomic_numbers": "z",
    "neighbor_list": "edge_index",
    "bond_atoms": "bond_index",
}
_PYG_INDICES = ("edge_index", "bond_index")
"""[2, rows] in PyG, which counts them on where the name has ``index`` in it."""


def _write_pyg(samples: Samples, directory: Path) -> None:
    from torch_geometric.data import Data, InMemoryDataset  # noqa: PLC0415  optional

    systems = []
    for record in samples.records():
        tensors = {
            _PYG_NAMES.get(name, name): torch.from_numpy(np.array(values))
            for name, values in record.items()
        }
        for name in _PYG_INDICES:
            if name in tensors:
                tensors[name] = tensors[name].T.contiguous()
        systems.append(Data(**tensors))
    InMemoryDataset.save(systems, str(directory / "samples.pt"))


class PygReader:
    """Each sample sliced out of the collated whole, then ``Batch.from_data_list``."""

    def __init__(self, directory: Path) -> None:
        from torch_geometric.data import InMemoryDataset  # noqa: PLC0415  optional
        from torch_geometric.loader.dataloader import Collater  # noqa: PLC0415  optional

        self._dataset = InMemoryDataset()
        self._dataset.load(str(directory / "samples.pt"))
        self._collate = Collater(self._dataset)

    def request(self, index: Int64Array) -> Any:
        """See `Reader.request`."""
        return index.tolist()

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        return self._collate([self._dataset[i] for i in request])

    def arrays(self, batch: Any) -> Mapping[str, AnyArray]:
        """See `Reader.arrays`."""
        names = {own: name for name, own in _PYG_NAMES.items()}
        found = {names.get(key, key): batch[key].numpy() for key in batch.keys()}  # noqa: SIM118
        for name in ATOM_ROWS:
            if name in found:
                found[name] = found[name].T
        return {**found, "batch_ptr": found["ptr"]}

    def close(self) -> None:
        """See `Reader.close`."""


def _write_atompack(samples: Samples, directory: Path) -> None:
    import atompack  # noqa: PLC0415  optional

    database = atompack.Database(str(directory / "samples.atp"), overwrite=True)
    database.add_molecules([atompack_molecule(record) for record in samples.records()])
    database.flush()


def atompack_molecule(record: Mapping[str, AnyArray]) -> Any:
    """A sample as atompack's ``Molecule``."""
    import atompack  # noqa: PLC0415  optional

    return atompack.Molecule.from_arrays(
        record["positions"],
        record["atomic_numbers"].astype(np.uint8),
        energy=float(record["energy"][0, 0]),
        forces=record["forces"],
        cell=record["cell"][0],
        pbc=_three(record["pbc"][0]),
    )


def _three(periodic: AnyArray) -> tuple[bool, bool, bool]:
    a, b, c = periodic.tolist()
    return a, b, c


class AtompackReader(ListReader):
    """``get_molecules_flat`` on a database that is mapped and not compressed."""

    def __init__(self, directory: Path) -> None:
        import atompack  # noqa: PLC0415  optional

        self._database = atompack.Database.open(str(directory / "samples.atp"), populate=True)

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        return self._database.get_molecules_flat(request)

    def arrays(self, batch: Any) -> Mapping[str, AnyArray]:
        """See `Reader.arrays`."""
        ptr = np.concatenate([[0], np.cumsum(batch["n_atoms"].astype(np.int64))])
        return {**batch, "energy": batch["energy"][:, None], "batch_ptr": ptr}


def _write_nvalchemi(samples: Samples, directory: Path) -> None:
    from nvalchemi.data.datapipes import AtomicDataZarrWriter  # noqa: PLC0415  optional

    writer = AtomicDataZarrWriter(directory / "store.zarr")
    writer.write([nvalchemi_data(record) for record in samples.records()])


def nvalchemi_data(record: Mapping[str, AnyArray]) -> Any:
    """A sample as nvalchemi's ``AtomicData``."""
    from nvalchemi.data import AtomicData  # noqa: PLC0415  optional

    return AtomicData(
        **{name: torch.from_numpy(np.array(values)) for name, values in record.items()}
    )


class NvalchemiReader:
    """``Dataset.load_batches`` of its Zarr reader, without validation, the quicker of its ways."""

    def __init__(self, samples: Samples, directory: Path) -> None:
        from nvalchemi.data.datapipes import AtomicDataZarrReader, Dataset  # noqa: PLC0415

        self._dataset = Dataset(
            AtomicDataZarrReader(directory / "store.zarr"), device="cpu", skip_validation=True
        )
        self._names = tuple(samples.fields)

    def request(self, index: Int64Array) -> Any:
        """See `Reader.request`."""
        return index.tolist()

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        return next(iter(self._dataset.load_batches([request])))

    def arrays(self, batch: Any) -> Mapping[str, AnyArray]:
        """See `Reader.arrays`."""
        found = {name: getattr(batch, name).numpy() for name in self._names}
        counts = torch.tensor(batch.num_nodes_list)
        return {**found, "batch_ptr": np.concatenate([[0], np.cumsum(counts)])}

    def close(self) -> None:
        """See `Reader.close`."""
        self._dataset.close()


class GatheredNvalchemiReader(NvalchemiReader):
    """The same calls on a store of zarrpipe, whose gather makes whole batches of nvalchemi."""

    def __init__(self, samples: Samples, directory: Path) -> None:
        self._dataset = nvalchemi_dataset(zp.ZarrDataset(directory / STORE), device="cpu")
        self._names = tuple(samples.fields)


ENGINES = (
    Engine("ASE SQLite", _write_ase, lambda _, place: AseReader(place), needs=("ase",)),
    Engine(
        "PyG InMemoryDataset",
        _write_pyg,
        lambda _, place: PygReader(place),
        needs=("torch_geometric",),
        note="in memory while it is read",
    ),
    Engine(
        "atompack",
        _write_atompack,
        lambda _, place: AtompackReader(place),
        needs=("atompack",),
        levels=frozenset(("atom", "system")),
        note="get_molecules_flat; one byte for an atomic number, where the others copy eight; "
        "counts of atoms instead of pointers",
    ),
    Engine(
        "nvalchemi",
        _write_nvalchemi,
        NvalchemiReader,
        needs=("nvalchemi",),
        levels=frozenset(("atom", "system", "edge")),
        single=True,
        note="load_batches without validation; it rounds floats to the dtype of the positions",
    ),
    Engine(
        "nvalchemi on zarrpipe",
        write_store,
        GatheredNvalchemiReader,
        needs=("nvalchemi",),
        levels=frozenset(("atom", "system", "edge")),
        shares="zarrpipe",
        note="load_batches of nvalchemi_dataset, which are nvalchemi's batches",
    ),
)
