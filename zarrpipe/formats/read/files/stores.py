"""Stores of zarrpipe and nvalchemi as sources: their batches, as they are."""

from pathlib import Path

from zarrpipe.data.batch import Batch
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.formats.read.frames import Part, Scan
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.layout import ATOMS_PTR

_PART_SAMPLES = 4096


def is_store(path: Path) -> bool:
    """Whether a directory is a store of samples."""
    if not (path / "zarr.json").is_file():
        return False
    group = Root.of(str(path)).open_group()
    return group is not None and ATOMS_PTR in group


class StoreReader:
    """Reads stores; their labels have the names and units of the registry already."""

    name = "zarr"
    in_processes = False

    def scan(self, path: str) -> Scan:
        """Divide the samples that are there now."""
        count = len(ZarrDataset(path))
        starts = range(0, count, _PART_SAMPLES)
        return Scan(
            tuple(Part(path, start, min(_PART_SAMPLES, count - start)) for start in starts),
            {},
            exhaustive=True,
        )

    def read(self, part: Part) -> Batch:
        """Read the samples of a part."""
        return ZarrDataset(part.path).read(slice(part.first, part.first + part.num_frames))
