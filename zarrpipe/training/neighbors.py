"""How many neighbours atoms have, of which models normalise what they sum."""

import numpy as np

from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError
from zarrpipe.transforms.neighbors import NeighborList, find

_BLOCK = 64


def mean_neighbors(
    dataset: ZarrDataset, cutoff: float, *, samples: int = 1024, seed: int = 0
) -> float:
    """Mean number of neighbours of an atom, estimated from some of the structures.

    Parameters
    ----------
    dataset
        The training samples, for example.
    cutoff
        How near an atom is a neighbour, Angstrom. Periodic images count.
    samples
        How many structures are looked at, at most.
    seed
        Of the choice of these.

    Returns
    -------
    float
        Neighbours per atom; NaN without any sample.

    Raises
    ------
    ValueError
        If `cutoff` is not a positive finite number, or `samples` is not positive.
    MissingLibraryError
        If vesin is not installed.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> store = {}
    >>> with zp.ZarrData(store) as sink:
    ...     sink.write(zp.AtomicData([[0.0] * 3, [0.0, 0.0, 1.1], [0.0, 0.0, 5.0]], [6, 8, 2]))
    >>> round(mean_neighbors(zp.ZarrDataset(store), cutoff=2.0), 3)
    0.667
    """
    NeighborList(cutoff)  # refuses what it cannot search for
    if samples < 1:
        raise ArgumentError(f"samples is {samples}, expected a positive number")
    number, rng = min(samples, len(dataset)), np.random.default_rng(seed)
    chosen = dataset.index_select(np.sort(rng.choice(len(dataset), number, replace=False)))
    box = [name for name in NeighborList.reads if name in dataset.schema]
    edges = atoms = 0
    for start in range(0, number, _BLOCK):
        batch = chosen.gather(np.arange(start, min(start + _BLOCK, number)), box)
        edges += int(find(batch, cutoff).counts.sum())
        atoms += batch.num_nodes
    return edges / atoms if atoms else float("nan")
