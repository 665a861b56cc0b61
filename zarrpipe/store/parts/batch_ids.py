"""Batch ids: which batches the samples of a store, or of all parts, came in."""

from hashlib import blake2b

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.errors import ArgumentError, ArgumentTypeError, SchemaError
from zarrpipe.store.read.view import StoreView

BATCH_ID = "batch_id"
"""Field at system level with the hash of the batch id; 0, and absent, for samples without one."""

_LONGEST = 4096


def checked_batch_id(batch_id: object) -> str:
    """A batch id; raises ArgumentTypeError or ArgumentError for none."""
    if not isinstance(batch_id, str):
        raise ArgumentTypeError(
            f"batch_id is {batch_id!r} of type {type(batch_id).__name__}, expected a string, such "
            "as batch_id='task-17'"
        )
    if not 0 < len(batch_id) <= _LONGEST:
        raise ArgumentError(
            f"batch_id has {len(batch_id)} characters, expected 1 to {_LONGEST}: the name of the "
            "task that made the batch"
        )
    return batch_id


def hash_of(batch_id: str) -> int:
    """Hash of a batch id, as the field has it: int64, not 0."""
    digest = blake2b(batch_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def of_piece(batch_id: str, number: int) -> str:
    """Batch id of a piece of a stream."""
    return f"{batch_id}\0{number}"


def with_batch_id(batch: Batch, batch_id: str) -> Batch:
    """Batch that shares the tensors and has the hash of a batch id in its field."""
    plain = batch.without(*({BATCH_ID} & batch.fields.keys()))
    values = torch.full((batch.num_graphs,), hash_of(batch_id), dtype=torch.int64)
    return plain.add_field(BATCH_ID, values.to(batch.device), Level.SYSTEM)


class StoredBatchIds:
    """The batch ids of the committed samples of one store, as far as it was looked at."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()
        self._state: tuple[str, int] = ("", 0)

    def has(self, view: StoreView, batch_id: str) -> bool:
        """Whether the store has samples of a batch, after a look at those that are new in it.

        Deleted samples count until the store is rewritten.
        """
        snapshot = view.snapshot
        generation, samples = snapshot.attributes.generation, snapshot.extent.samples
        known, first = self._state
        if known != generation:
            self._hashes, first = set(), 0
        item = view.schema.get(BATCH_ID)
        if item is not None and first < samples:
            if (
                item.level is not Level.SYSTEM
                or item.dtype != np.int64
                or item.shape not in ((), (1,))
            ):
                raise SchemaError(
                    f"{snapshot.root} has a field {BATCH_ID!r} of another kind (level "
                    f"{item.level!r}, {item.dtype}, rows of shape {item.shape}): write batches "
                    "with a batch_id to another store"
                )
            values = snapshot.rows(item.path, samples)[first:samples]
            self._hashes.update(np.unique(values).tolist())
        self._state = generation, samples
        return hash_of(batch_id) in self._hashes
