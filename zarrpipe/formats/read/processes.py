"""Parts of files parsed in other processes, in order.

Each process is a Python of its own that imports neither torch nor the script which called. It
reads pickled parts from its standard input and writes pickled blocks to its standard output.
"""

import contextlib
import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from zarrpipe.formats.read.frames import FrameBlock, Part, Reader

Task = tuple[Reader, Part]
ReadParts = Callable[[Iterable[Task]], Iterator[tuple[Part, Any]]]

_AHEAD = 2
"""Parts that each process is given before the first of them is taken."""

_MAIN = "from zarrpipe.formats.read.processes import serve; serve()"


class _Failed(NamedTuple):
    """An exception of a process, and where it came from."""

    error: BaseException


@contextmanager
def parsing(processes: int) -> Iterator[ReadParts]:
    """Function that reads parts in order, in so many processes, or here if these are less than 2.

    The processes start at once, so that their imports take no time later.
    """
    if processes < 2:
        yield lambda tasks: ((part, reader.read(part)) for reader, part in tasks)
        return
    with _Pool(processes) as pool:
        yield pool.read


class _Pool:
    """Processes, each with a thread that waits for its answers."""

    def __init__(self, processes: int) -> None:
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._running: list[subprocess.Popen[bytes]] = []
        self._ahead = _AHEAD * processes
        for _ in range(processes):
            self._free.put(self._start())
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="zarrpipe-parse")

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    _opened(stream).close()

    def read(self, tasks: Iterable[Task]) -> Iterator[tuple[Part, Any]]:
        """Parts and their blocks, in order; a reader that needs this process reads in its turn."""
        waiting: deque[tuple[Part, Callable[[], Any]]] = deque()
        for reader, part in tasks:
            waiting.append((part, self._submit(reader, part)))
            if len(waiting) > self._ahead:
                first, result = waiting.popleft()
                yield first, result()
        for first, result in waiting:
            yield first, result()

    def _submit(self, reader: Reader, part: Part) -> Callable[[], Any]:
        """Function that waits for the block of a part."""
        if not reader.in_processes:
            return lambda: reader.read(part)
        future: Future[FrameBlock] = self._threads.submit(self._ask, (reader, part))
        return future.result

    def _ask(self, task: Task) -> FrameBlock:
        process = self._free.get()
        try:
            requests = _opened(process.stdin)
            requests.write(pickle.dumps((pickle.dumps(task[0]), task[1])))
            requests.flush()
            answer = pickle.load(_opened(process.stdout))  # noqa: S301  of our own process
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise RuntimeError(_ended(process, task[1])) from error
        finally:
            self._free.put(process)
        if isinstance(answer, _Failed):
            raise answer.error
        block: FrameBlock = answer
        return block

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(  # noqa: S603  this Python
            [sys.executable, "-c", _MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._running.append(process)
        return process


def _opened(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise OSError("the stream was closed")
    return stream


def _ended(process: subprocess.Popen[bytes], part: Part) -> str:
    """Message that a process ended while it read a part."""
    code = process.wait()
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name} (often for the memory that it used)"
    return f"the process that read {part.path} from frame {part.first} on {how}"


def serve() -> None:
    """Read parts until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked ends this one
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    with contextlib.suppress(ImportError):
        importlib.import_module("ase.io.extxyz")  # what most readers need, while the caller scans
    readers: dict[bytes, Reader] = {}  # one of each, since they remember what they have seen
    while True:
        try:
            pickled, part = pickle.load(requests)  # noqa: S301  of our own process
        except EOFError:
            return
        try:
            if pickled not in readers:
                readers[pickled] = pickle.loads(pickled)  # noqa: S301  of our own process
            answer: Any = readers[pickled].read(part)
        except Exception as error:  # noqa: BLE001  raised again by the process that asked
            answer = _Failed(error)
        answers.write(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))
        answers.flush()
