"""Transforms that worker processes import."""

import itertools
import os
import random
import signal
import time

import numpy as np
import torch

from zarrpipe import Batch


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def same(batch: Batch) -> Batch:
    return batch


def shifted(batch: Batch) -> Batch:
    batch.positions = batch.positions + 1
    return batch


def widened(batch: Batch) -> Batch:
    """Adds a field of 2 MB to batches with an odd serial in front, and little to others."""
    columns = 262144 // batch.num_nodes if int(batch.serial[0]) % 2 else 1
    values = torch.arange(batch.num_nodes * columns, dtype=torch.float64)
    return batch.add_field("wide", values.reshape(batch.num_nodes, columns), "atom")


def fails_at_seven(batch: Batch) -> Batch:
    if 7 in batch.serial.tolist():
        raise KeyError("seven")
    return batch


def fails_oddly(batch: Batch) -> Batch:
    raise Unpicklable("this", "that")


def forgets_to_return(batch: Batch):
    batch.positions = batch.positions + 1


def stops(batch: Batch) -> Batch:
    return next(iter([]))


def gives_a_list(batch: Batch):
    return batch.to_data_list()


def exits(batch: Batch) -> Batch:
    os._exit(3)


def is_killed(batch: Batch) -> Batch:
    os.kill(os.getpid(), signal.SIGKILL)
    return batch


def slow(batch: Batch) -> Batch:
    time.sleep(0.05)
    return batch


def with_draws(batch: Batch) -> Batch:
    """Adds what the three global generators give."""
    draws = torch.tensor([[random.random(), np.random.random(), float(torch.rand(()))]])  # noqa: NPY002
    return batch.add_field("draws", draws.repeat(batch.num_graphs, 1), "system")


class Neighbours:
    """Adds the neighbour list within a cutoff [Angstrom], found by vesin for each system."""

    def __init__(self, cutoff: float) -> None:
        self.cutoff = cutoff

    def __call__(self, batch: Batch) -> Batch:
        from vesin import NeighborList  # noqa: PLC0415  optional

        search = NeighborList(cutoff=self.cutoff, full_list=True)
        edges, counts = [np.zeros((0, 2), dtype=np.int64)], []
        for start, stop in itertools.pairwise(batch.batch_ptr.tolist()):
            points = batch.positions[start:stop].double().numpy()
            pairs = search.compute(points, np.zeros((3, 3)), periodic=False, quantities="P")[0]
            edges.append(pairs.astype(np.int64) + start)
            counts.append(len(pairs))
        fields = dict(batch.fields, neighbor_list=torch.from_numpy(np.concatenate(edges)))
        edge_ptr = torch.tensor([0, *counts]).cumsum(0)
        return Batch(fields, batch.batch_ptr, edge_ptr, levels=batch.levels)
