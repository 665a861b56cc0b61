"""Processes that change a store until they are killed, forked by a host before Zarr has a thread.

A fork of a process that has imported everything costs milliseconds. What a life is about to do and
has done it says on a pipe, and a kill cannot take back what is in there.
"""

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from reliability.hand import Hand, Step
from zarrpipe.data.ids import compiled_ids

_GROUPS = ("meta", "core", "custom")
_ZSTD = {"chunk_size": 100, "compressors": ({"name": "zstd", "configuration": {"level": 1}},)}
CONFIGS: Mapping[str, Any] = {
    "default": None,
    "mapped": {group: {"chunk_size": 4096} for group in _GROUPS},
    "small": {group: {"chunk_size": 60} for group in _GROUPS},
    "compressed": dict.fromkeys(_GROUPS, _ZSTD),
}
"""Stores by name: one chunk, mapped chunks that are filled, many small ones, and through Zarr."""

TARGET = "merged"
"""Name of the store beside a store that it is merged into."""

_SECONDS = 120.0
_MONOTONIC = 1


def _live(life: Mapping[str, Any]) -> None:
    """Carry out the steps of a life, saying so; arm the kill as its step begins."""
    store = life["store"] if "://" in life["store"] else Path(life["store"])
    target = f"{store}-{TARGET}" if isinstance(store, str) else store.with_name(TARGET)
    hand = Hand(store, target, CONFIGS[life["config"]], life["stage"])
    for number, (name, given) in enumerate(life["steps"]):
        _say("begin", number)
        if life["delay"] is not None and number == life["armed"]:
            _arm(life["delay"])
        start = time.perf_counter()
        try:
            result = hand(name, given)
        except BaseException as error:  # noqa: BLE001  said to the campaign, which calls it a defect
            _say("error", number, f"{type(error).__name__}: {error}")
            break
        _say("end", number, time.perf_counter() - start, result)
    _say("rest", len(life["steps"]))
    time.sleep(_SECONDS)


def _say(*words: Any) -> None:
    """Say a line at once."""
    line = json.dumps(words).encode() + b"\n"
    while line:
        line = line[os.write(1, line) :]


def _arm(delay: float) -> None:
    """Let the system kill this process, as with kill -9, after a time."""
    event = (ctypes.c_int * 16)()  # struct sigevent: a value, the signal, and how: as a signal
    event[2] = signal.SIGKILL
    timer, libc = ctypes.c_void_p(), ctypes.CDLL(None, use_errno=True)
    if libc.timer_create(_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
        raise OSError(ctypes.get_errno(), "timer_create")
    when = (ctypes.c_long * 4)(0, 0, int(delay), max(1, int(delay % 1 * 1e9)))
    if libc.timer_settime(timer, 0, ctypes.byref(when), None):
        raise OSError(ctypes.get_errno(), "timer_settime")


def load_compiled() -> None:
    """Load what numba compiles at its first use."""
    importlib.import_module("zarrpipe.store.read.kernels")
    compiled_ids()


def host() -> None:
    """Fork a process for each line of the standard input, one after the other."""
    load_compiled()  # half a second that no life has to spend
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.close(0)
            _live(json.loads(line))
            os._exit(0)
        _say("pid", child)
        os.waitpid(child, 0)
        _say("dead", child)


@dataclass
class Told:
    """What a life said before it was killed.

    Parameters
    ----------
    ended
        Results of the steps that it finished.
    seconds
        How long each of them took.
    begun
        How many steps it began.
    error
        What the step raised that was the last to begin.
    """

    ended: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    begun: int = 0
    error: str | None = None

    def hear(self, word: str, rest: Sequence[Any]) -> None:
        """Note one more thing that was said."""
        match word:
            case "begin":
                self.begun = rest[0] + 1
            case "end":
                self.seconds.append(rest[1])
                self.ended.append(rest[2])
            case "error":
                self.error = rest[1]


class Lives:
    """The host as the campaign sees it."""

    def __init__(self) -> None:
        root = Path(__file__).parents[1]
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._host = subprocess.Popen(
            [sys.executable, "-c", "from reliability.lives import host; host()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env={**os.environ, **one},
        )
        self._rest = b""

    def __enter__(self) -> "Lives":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._host.stdin, self._host.stdout):
            assert pipe is not None
            pipe.close()
        self._host.wait(_SECONDS)

    def live(
        self,
        store: Path | str,
        config: str,
        steps: Sequence[Step],
        *,
        armed: int = 0,
        delay: float | None = None,
        outside: float | None = None,
        stage: Path | None = None,
    ) -> Told:
        """Let a process carry out steps until it is killed; what it said.

        Parameters
        ----------
        store, config, steps
            What it does.
        armed, delay
            Its kill: so many seconds after this step began, by a timer of the system.
        outside
            Kill it from here instead, so many seconds after it was forked.
        stage
            Directory of the sink's stage, for a store in an object store.
        """
        assert self._host.stdin is not None
        life: dict[str, Any] = {"store": str(store), "config": config, "steps": steps}
        life |= {"armed": armed, "delay": delay, "stage": None if stage is None else str(stage)}
        self._host.stdin.write(json.dumps(life).encode() + b"\n")
        self._host.stdin.flush()
        told, pid = Told(), 0
        for word, *rest in self._words(time.monotonic() + _SECONDS, outside):
            match word:
                case "pid":
                    pid = rest[0]
                case "late":
                    os.kill(pid, signal.SIGKILL)
                case "rest" if outside is None and (delay is None or told.error):
                    os.kill(pid, signal.SIGKILL)
                case "dead":
                    return told
            told.hear(word, rest)
        raise TimeoutError(f"a process did not die: {life}")

    def _words(self, end: float, outside: float | None) -> Iterator[list[Any]]:
        """What is said until a time; "late" once, when the time of a kill from here has come."""
        assert self._host.stdout is not None
        late = None
        while (left := (late or end) - time.monotonic()) > 0 or late:
            if not wait([self._host.stdout], max(left, 0)):
                if late is not None:
                    late = None
                    yield ["late"]
                continue
            got = os.read(self._host.stdout.fileno(), 1 << 16)
            if not got:
                raise ChildProcessError("the host of the processes ended")
            self._rest += got
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                words = json.loads(line)
                if words[0] == "pid" and outside is not None:
                    late = time.monotonic() + outside
                yield words
