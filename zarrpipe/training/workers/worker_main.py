"""The main loop of a worker process, and the messages between it and the main process.

Requests and answers are a few bytes in a pipe. Indices, batches and exceptions are in a `Slot`.
"""

import contextlib
import gc
import os
import pickle
import random
import signal
import struct
import traceback
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.batch_layout import pack, packed_bytes, unpack
from zarrpipe.data.buffers import BufferPool, Bytes
from zarrpipe.data.csr import Int64Array
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.training.workers.shared_slot import Slot

BATCH, RAISED = 0, 1
"""Answers: the bytes of a batch and its pickled header, or a traceback and a pickled exception."""

REQUEST = struct.Struct("=BQQQ")
"""Slot, seed of the global random generators, and the lengths of the slot's two parts.

The first part is a pickle, only at the start of an iteration, of the dataset's ``state_dict``, the
key of random transforms, and whether copies follow the indices. The second is the indices as int64.
"""

ANSWER = struct.Struct("=BQQ")
"""Kind, and the lengths of the two parts of the request's slot."""

_MOST = 32


def worker_main(
    requests: Connection, answers: Connection, slots: list[Slot], pickled: bytes
) -> None:
    """Answer requests until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles control-C
    gc.freeze()  # collections would write to, and so copy, pages of the fork server
    torch.set_num_threads(1)
    reader = _Reader(pickled)
    asked, said = requests.fileno(), answers.fileno()
    # A pipe keeps messages shorter than a page whole, so none of these requests is cut.
    while messages := os.read(asked, _MOST * REQUEST.size):
        group = list(REQUEST.iter_unpack(messages))
        for number, (place, seed, *lengths) in enumerate(group):
            state, index = (part.tobytes() for part in split(slots[place], *lengths))
            answer = reader.answer(slots[place], seed, state, index)
            try:
                os.write(said, answer)
            except BrokenPipeError:
                return
            if number == 0 and len(group) > 1:
                reader.prefetch([split(slots[place], *rest)[1] for place, _, *rest in group[1:]])


def split(slot: Slot, first: int, second: int) -> tuple[Bytes, Bytes]:
    """Views of the two parts of a slot."""
    room = slot.room(first + second)
    return room[:first], room[first : first + second]


class _Reader:
    """The dataset of a worker, or the exception that answers every request instead."""

    def __init__(self, pickled: bytes) -> None:
        self._dataset: ZarrDataset | None = None
        self._failure: Exception | None = None
        self._copied = False
        try:
            self._dataset = pickle.loads(pickled)  # noqa: S301  of our own
        except Exception as error:  # noqa: BLE001  goes to the main process
            self._failure = error

    def answer(self, slot: Slot, seed: int, state: bytes, index: bytes) -> bytes:
        """Put a batch or an exception into a slot; return the answer."""
        try:
            if state:
                self._follow(*pickle.loads(state))  # noqa: S301  of our own
            _seed(seed)
            return _put(slot, self._ready().read(*self._asked(np.frombuffer(index, np.int64))))
        except Exception as error:  # noqa: BLE001  goes to the main process
            return _put_raised(slot, error)

    def prefetch(self, indices: list[Bytes]) -> None:
        """Announce the samples of the next requests."""
        with contextlib.suppress(Exception):  # reading them raises it again
            asked = [self._asked(index.view(np.int64))[0] for index in indices]
            self._ready().prefetch(np.concatenate(asked))

    def _asked(self, words: Int64Array) -> tuple[Int64Array, Int64Array | None]:
        """Indices, and their copies if these were sent."""
        if not self._copied:
            return words, None
        index, copies = words.reshape(2, -1)
        return index, copies

    def _follow(self, state: dict[str, Any], draw: tuple[int, int], copied: bool) -> None:
        """Restore the state of the main process's dataset."""
        self._copied = copied
        if self._dataset is not None:
            self._failure = None
            try:
                self._dataset.load_state_dict(state)
                self._dataset.set_epoch(*draw)
            except Exception as error:
                self._failure = error
                raise

    def _ready(self) -> ZarrDataset:
        if self._dataset is None or self._failure is not None:
            raise self._failure or RuntimeError("the worker has no dataset")
        return self._dataset


def _seed(seed: int) -> None:
    """Seed the global generators, so that draws depend on the batch and not on the worker."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002  transforms may use it


def _put(slot: Slot, batch: Batch) -> bytes:
    try:
        header, _ = pack(batch, slot.room())
    except ValueError:
        header, _ = pack(batch, slot.room(packed_bytes(batch)))
    return _answer(slot, BATCH, header.nbytes, pickle.dumps(header))


def _put_raised(slot: Slot, error: Exception) -> bytes:
    text = "".join(traceback.format_exception(error)).encode()
    slot.room(len(text))[: len(text)] = np.frombuffer(text, dtype=np.uint8)
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # noqa: S301  some exceptions pickle but cannot be made again
    except Exception:  # noqa: BLE001  any class of exception may fail in any way
        pickled = b""
    return _answer(slot, RAISED, len(text), pickled)


def _answer(slot: Slot, kind: int, nbytes: int, pickled: bytes) -> bytes:
    """Append a pickle to the bytes in a slot; return the answer."""
    stop = nbytes + len(pickled)
    if stop > len(slot.room()):
        slot.room(stop)
    slot.room()[nbytes:stop] = np.frombuffer(pickled, dtype=np.uint8)
    return ANSWER.pack(kind, nbytes, len(pickled))


def received(kind: int, held: Bytes, pickled: Bytes, buffers: BufferPool) -> Batch | Exception:
    """The batch of an answer, copied out of the slot, or its exception."""
    if kind == BATCH:
        buffer, pinned = buffers.take(len(held))
        buffer[:] = held
        layout = pickle.loads(pickled.tobytes())  # noqa: S301  a worker's own
        # Views of the page-locked tensor itself, so that torch knows when it is free.
        return unpack(layout, buffer if pinned is None else pinned)
    text = held.tobytes().decode()
    error: Exception = RuntimeError("a worker process raised what cannot be pickled")
    if len(pickled):
        error = pickle.loads(pickled.tobytes())  # noqa: S301  a worker's own
    error.add_note(f"In a worker process:\n{text}")
    return error
