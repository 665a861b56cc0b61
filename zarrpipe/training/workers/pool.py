"""Worker processes that read batches, transform them and return them in shared memory.

A request names a slot of shared memory with the indices to read; the worker leaves the batch there,
and the main process copies it out and reuses the slot. So a worker never waits for room, the pipe
never fills up, and nothing can deadlock. A worker ends when its request pipe is closed, also by a
kill of the main process.
"""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import select
import signal
import sys
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.buffers import BufferPool
from zarrpipe.data.csr import Int64Array
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.training.epoch.batch_plan import BatchIndices
from zarrpipe.training.workers.shared_slot import Slot
from zarrpipe.training.workers.worker_main import ANSWER, REQUEST, received, split, worker_main

SLOTS = 8
"""Batches that are requested ahead of each worker."""

_GROUP = SLOTS // 2
"""Requests sent together, as waking a process takes longer than reading a small batch."""

_GRACE = 2.0
_SEEDS = 1 << 64
_PRELOAD = ("zarrpipe.training.workers.worker_main", "zarrpipe.store.read.kernels")
"""Modules that a fork server imports once for all workers."""

Request = tuple[int, Int64Array]
"""Seed, and indices [K] or indices and copies [2, K]."""


class Workers:
    """Worker processes that read batches in turn; they end at `close`, or with this object.

    They start at the first batch, and anew at the next one after `close` or the death of one.
    `method` is multiprocessing's start method, by default forkserver, or spawn where there is none.
    """

    def __init__(self, count: int, method: str | None = None) -> None:
        if sys.platform == "win32":
            raise NotImplementedError("workers need a POSIX system: use num_workers=0 on Windows")
        self._count, self._method = count, method
        self._workers: list[_Worker] = []
        self._finalizer: weakref.finalize[..., Workers] | None = None
        self._iteration, self._buffers = 0, BufferPool()

    @property
    def closed(self) -> bool:
        """Whether there are no processes."""
        return self._finalizer is None or not self._finalizer.alive

    def close(self) -> None:
        """End the processes; a second call does nothing."""
        if self._finalizer is not None:
            self._finalizer()

    def _start(self, dataset: ZarrDataset) -> None:
        pickled, context = _pickled(dataset), start_context(self._method)
        self._workers = []
        self._finalizer = weakref.finalize(self, _end, self._workers, os.getpid())
        for number in range(self._count):
            self._workers.append(_Worker(context, number, pickled))

    def read(
        self, dataset: ZarrDataset, items: Iterator[BatchIndices]
    ) -> Generator[Batch, None, None]:
        """Batches of a dataset, in order; one iteration at a time.

        All `items` are of one epoch. Workers get a copy of the dataset when they start, and later
        only its state.
        """
        self._iteration += 1
        mine, first = self._iteration, next(items, None)
        if first is None:
            return
        if self.closed:
            self._start(dataset)
        ahead = SLOTS * len(self._workers)
        requests = map(_request, itertools.chain([first], items))
        known = pickle.dumps((dataset.state_dict(), first.draw, first.copies is not None))
        with self._ending():
            for worker in self._workers:
                worker.begin(known)
            turns = itertools.cycle(self._workers)
            for request, worker in zip(itertools.islice(requests, ahead), turns, strict=False):
                worker.ask(request)
            for worker in self._workers:
                worker.send()
        for worker in itertools.cycle(self._workers):
            if self.closed or self._iteration != mine:
                raise RuntimeError(
                    "the loader was closed, or iterated over again, while this iteration was under "
                    "way: it cannot go on; use another loader for a second iteration beside it"
                )
            if not worker.busy:
                return
            with self._ending():
                answer = worker.take(self._buffers)
                for request in itertools.islice(requests, 1):
                    worker.ask(request)
                worker.pass_on()
            if isinstance(answer, Exception):
                raise answer
            yield answer

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """End all workers after an exception that may have cut a message short."""
        try:
            yield
        except BaseException:
            self.close()
            raise


class _Worker:
    """The main process's side of a worker."""

    def __init__(self, context: BaseContext, number: int, pickled: bytes) -> None:
        requests, self._requests = context.Pipe(duplex=False)
        self._answers, answers = context.Pipe(duplex=False)
        self._slots = [Slot() for _ in range(SLOTS)]
        self._free = list(range(SLOTS))
        self._asked: deque[tuple[int, int]] = deque()
        self._waiting: deque[Request] = deque()
        self._received: deque[tuple[int, int, int]] = deque()
        self._iteration, self._state = 0, b""
        self._process = context.Process(  # type: ignore[attr-defined]  # each context has its own
            target=worker_main,
            args=(requests, answers, self._slots, pickled),
            name=f"zarrpipe-worker-{number}",
            daemon=True,
        )
        self._process.start()
        requests.close()
        answers.close()
        self._events = select.poll()
        for source in (self._answers.fileno(), self._process.sentinel):
            self._events.register(source, select.POLLIN)

    def begin(self, state: bytes) -> None:
        """Begin an iteration; answers to an earlier one will be dropped."""
        self._iteration += 1
        self._waiting.clear()
        self._state = state

    @property
    def busy(self) -> bool:
        """Whether there is a batch to `take`."""
        return bool(self._waiting or (self._asked and self._asked[-1][0] == self._iteration))

    def ask(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def take(self, buffers: BufferPool) -> Batch | Exception:
        """The next batch, or the exception that reading it raised."""
        while True:
            kind, *lengths = self._receive()
            iteration, place = self._asked.popleft()
            got = None
            if iteration == self._iteration:
                got = received(kind, *split(self._slots[place], *lengths), buffers)
            self._free.append(place)
            if got is not None:
                return got
            self.pass_on()

    def pass_on(self) -> None:
        """Send queued requests if there are slots for a group of them."""
        if len(self._free) >= _GROUP:
            self.send()

    def send(self) -> None:
        """Send as many queued requests as there are free slots."""
        message = b""
        while self._waiting and self._free:
            seed, index = self._waiting.popleft()
            place = self._free.pop()
            state, rows = self._state, np.ravel(index).astype(np.int64).view(np.uint8)
            self._state = b""
            first, second = split(self._slots[place], len(state), len(rows))
            first[:], second[:] = np.frombuffer(state, dtype=np.uint8), rows
            self._asked.append((self._iteration, place))
            message += REQUEST.pack(place, seed % _SEEDS, len(state), len(rows))
        try:
            if message:
                os.write(self._requests.fileno(), message)
        except OSError:
            raise self._died() from None

    def _receive(self) -> tuple[int, int, int]:
        """The next answer; raises if the process died, even if its child holds the pipe open."""
        if not self._received:
            answers = b""
            if any(source == self._answers.fileno() for source, _ in self._events.poll()):
                answers = os.read(self._answers.fileno(), SLOTS * ANSWER.size)
            self._received.extend(ANSWER.iter_unpack(answers))
        if not self._received:
            raise self._died()
        return self._received.popleft()

    def _died(self) -> RuntimeError:
        self._process.join(_GRACE)
        code, pid = self._process.exitcode, self._process.pid
        how = f"ended with exit code {code}: it may have printed why"
        if code is not None and code < 0:
            how = (
                f"was killed by {signal.Signals(-code).name}: often the machine's memory was used "
                "up (then fewer workers or smaller batches help), or compiled code crashed"
            )
        return RuntimeError(f"worker process {self._process.name} ({pid}) {how}")

    def hang_up(self) -> None:
        """Close pipes and memory, so that the process ends."""
        self._requests.close()
        self._answers.close()
        for slot in self._slots:
            slot.close()

    def end(self, seconds: float) -> None:
        """Wait for the process to end, then terminate it."""
        self._process.join(seconds)
        for stop in (self._process.terminate, self._process.kill):
            if self._process.exitcode is None:
                stop()
                self._process.join(_GRACE)
        self._process.close()


def _request(item: BatchIndices) -> Request:
    """Seed, and indices or indices and copies."""
    if item.copies is None:
        return item.seed, item.samples
    return item.seed, np.stack((item.samples, item.copies))


def _end(workers: list[_Worker], owner: int) -> None:
    """End processes, unless this is a fork of the process that started them."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.hang_up()
    deadline = time.monotonic() + _GRACE
    for worker in workers:
        worker.end(max(0.0, deadline - time.monotonic()))


def _pickled(dataset: ZarrDataset) -> bytes:
    try:
        return pickle.dumps(dataset)
    except Exception as error:
        error.add_note(
            "Worker processes get a copy of the dataset by pickle: its transform has to be a "
            "function or class of a module, not a lambda or local function, and its store a place "
            "that another process can open."
        )
        raise


def start_context(method: str | None = None) -> BaseContext:
    """Multiprocessing context, whose fork server preloads the modules of workers."""
    if method is None:
        known = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in known else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        before = getattr(forkserver._forkserver, "_preload_modules", ["__main__"])
        # Scripts import Lightning, and every worker imports the script.
        script = [name for name in ("lightning.pytorch",) if name in sys.modules]
        context.set_forkserver_preload(list(dict.fromkeys([*before, *_PRELOAD, *script])))
    return context
