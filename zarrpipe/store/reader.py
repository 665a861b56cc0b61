"""Reading single samples as dictionaries, as nvalchemi's `AtomicDataZarrReader` does."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from zarrpipe.closing import Closing
from zarrpipe.data.csr import AnyArray, position_of, positions_of
from zarrpipe.store.root import StoreLike
from zarrpipe.store.view import StoreView

Sample = tuple[dict[str, torch.Tensor], dict[str, Any]]


class AtomicDataZarrReader(Closing):
    """Reader of one store, a dictionary of tensors for each sample.

    `ZarrDataset` reads whole batches and is what a training run wants; this is for looking at
    samples one by one.

    Parameters
    ----------
    store : StoreLike
        The store to read; a writer may go on appending to it.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    """

    def __init__(self, store: StoreLike) -> None:
        self._view = StoreView(store)

    @property
    def field_levels(self) -> dict[str, str]:
        """Level of each field: "atom", "edge" or "system"."""
        return {name: item.level.value for name, item in self._view.schema.items()}

    @property
    def units(self) -> dict[str, str]:
        """Unit of each field that has one."""
        return self._view.schema.units

    def read(self, index: int) -> Sample:
        """Fields of a sample and where it stands.

        Parameters
        ----------
        index
            Sample, counted from either end, without the deleted.

        Returns
        -------
        fields : dict of str to torch.Tensor
            ``[n, ...]``, ``[e, ...]`` and ``[1, ...]`` by level, without those that the sample
            lacks; ``neighbor_list`` counts the atoms of the sample.
        metadata : dict
            ``index``, ``source_file`` and ``physical_index``, the row in the store as text.

        Raises
        ------
        SampleIndexError
            If there is no such sample.
        """
        return self.read_many([position_of(index, len(self), "sample", self._named)])[0]

    def read_many(self, indices: Sequence[int] | torch.Tensor | AnyArray) -> list[Sample]:
        """Several samples, each as `read` gives it."""
        wanted = positions_of(indices, len(self), "sample", self._named)
        batch = self._view.gather(wanted)
        rows = self._view.stored_rows(wanted)
        return [
            (dict(batch.get_data(place).fields), self._metadata(int(index), int(row)))
            for place, (index, row) in enumerate(zip(wanted, rows, strict=True))
        ]

    @property
    def _named(self) -> str:
        """What the reader reads, for errors."""
        return f"the store {self._view.store}"

    def _metadata(self, index: int, row: int) -> dict[str, Any]:
        source = str(self._view.store)
        return {"index": index, "source_file": source, "physical_index": str(row)}

    def refresh(self) -> int:
        """Look at the store again; the number of samples that are new."""
        return self._view.refresh()

    def close(self) -> None:
        """Let go of the store."""
        self._view.close()

    def __len__(self) -> int:
        return self._view.num_samples

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(index) for index in range(len(self)))
