"""Counts of the batches that a training loop was given, and of its time."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Self

from zarrpipe.data.batch import Batch


def batch_size_fn(batch: Batch) -> int:
    """Number of systems of a batch, for Lightning's ThroughputMonitor.

    Parameters
    ----------
    batch : Batch
        What a training loop was given.

    Examples
    --------
    >>> from lightning.pytorch.callbacks import ThroughputMonitor
    >>> import zarrpipe as zp
    >>> monitor = ThroughputMonitor(zp.batch_size_fn, zp.length_fn)  # items are atoms
    >>> water = zp.AtomicData([[0.0] * 3, [0.0, 0.8, 0.6], [0.0, -0.8, 0.6]], [8, 1, 1])
    >>> batch = zp.Batch.from_data_list([water, water])
    >>> zp.batch_size_fn(batch), zp.length_fn(batch)
    (2, 6)
    """
    return batch.num_graphs


def length_fn(batch: Batch) -> int:
    """Number of atoms of a batch, for Lightning's ThroughputMonitor; see `batch_size_fn`.

    Parameters
    ----------
    batch : Batch
        What a training loop was given.
    """
    return batch.num_nodes


@dataclass
class Flow:
    """Counts of the batches of a training loop, and the time they took in seconds.

    `waited` is the part of `seconds` in which the loop waited for its next batch.
    """

    seconds: float = 0.0
    waited: float = 0.0
    batches: int = 0
    samples: int = 0
    atoms: int = 0
    edges: int = 0
    bytes: int = 0

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self.batches += 1
        self.samples += batch.num_graphs
        self.atoms += batch.num_nodes
        self.edges += batch.num_edges
        self.bytes += sum(value.nbytes for value in batch.fields.values())

    def merge(self, other: Flow) -> None:
        """Add the counts of another one."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def since(self, before: Flow) -> Self:
        """What came since an earlier copy."""
        return type(self)(
            *(now - then for now, then in zip(astuple(self), astuple(before), strict=True))
        )

    @property
    def wait(self) -> float:
        """Share of the time in which the loop waited, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0

    def metrics(self, max_atoms: int | None, max_edges: int | None) -> dict[str, float]:
        """Figures for a logger, those of budgets if there are any."""
        seconds, batches = max(self.seconds, 1e-9), max(self.batches, 1)
        figures = {
            "wait": self.wait,
            "samples_per_s": self.samples / seconds,
            "atoms_per_s": self.atoms / seconds,
            "bytes_per_s": self.bytes / seconds,
        }
        if max_atoms is not None:
            figures["fill_atoms"] = self.atoms / batches / max_atoms
        if max_edges is not None:
            figures["fill_edges"] = self.edges / batches / max_edges
        return figures
