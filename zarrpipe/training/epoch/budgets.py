"""What a batch may hold at most, and what the samples of a dataset take of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.validate import check_count
from zarrpipe.errors import ArgumentError, ArgumentTypeError
from zarrpipe.training.epoch.packing import Costs
from zarrpipe.training.epoch.plans import IndexArray


@dataclass(frozen=True)
class Budgets:
    """What a batch may hold at most; None is no limit.

    Parameters
    ----------
    samples, atoms, edges : int, optional
        Counts.
    """

    samples: int | None = None
    atoms: int | None = None
    edges: int | None = None

    @classmethod
    def of(cls, batch_size: Any, max_atoms: Any, max_edges: Any) -> "Budgets":
        """Budgets of arguments."""
        given = {"batch_size": batch_size, "max_atoms": max_atoms, "max_edges": max_edges}
        if all(value is None for value in given.values()):
            raise ArgumentError(
                "a batch has no size: expected batch_size, max_atoms or max_edges, or several"
            )
        return cls(
            *(
                None if value is None else check_count(name, value, 1)
                for name, value in given.items()
            )
        )

    def costs(self, data: Any, samples: IndexArray) -> Costs:
        """What samples take of the budgets; without those of atoms and edges they are balanced.

        Parameters
        ----------
        data
            Has ``num_atoms`` and ``num_edges`` [N].
        samples : array [n]
            Which of its samples.
        """
        each, limits = [], []
        if self.samples is not None:
            each.append(np.ones(len(samples), dtype=np.int64))
            limits.append(self.samples)
        for name, limit in (("atoms", self.atoms), ("edges", self.edges)):
            if limit is None:
                continue
            sizes = _sizes(data, name, samples)
            if len(sizes) and sizes.max() > limit:
                place = int(sizes.argmax())
                raise ArgumentError(
                    f"sample {samples[place]} has {sizes[place]} {name}, more than max_{name}="
                    f"{limit}: raise max_{name}, or leave the sample out "
                    f"(where='num_{name} <= {limit}')"
                )
            each.append(sizes)
            limits.append(limit)
        by_count = self.atoms is None and self.edges is None
        weight = _sizes(data, "atoms", samples) if by_count else None
        # An epoch may be long: one budget is not copied.
        stacked = np.stack(each) if len(each) > 1 else each[0][None]
        return Costs(stacked, np.array(limits), weight)


def _sizes(data: Any, name: str, samples: IndexArray) -> Int64Array:
    """Number of atoms or edges of samples, [n] int64."""
    if not len(samples):
        return np.zeros(0, dtype=np.int64)
    if not hasattr(data, f"num_{name}"):
        raise ArgumentTypeError(
            f"batches are limited or balanced by their {name}, and {type(data).__name__} has no "
            f"num_{name} [N]: expected a ZarrDataset, or batch_size alone"
        )
    sizes: Int64Array = np.asarray(getattr(data, f"num_{name}"), dtype=np.int64)[samples]
    return sizes
