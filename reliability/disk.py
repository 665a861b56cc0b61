"""A disk that runs full at each step of every method that changes a store, and has room again.

The disk is a small one in memory that belongs to a process of its own, which also tells if mapped
rows bring one to its end (SIGBUS). Where no such disk can be had, a limit on the size of files
stands for it.
"""

import contextlib
import errno
import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from reliability.faults import Trial, attempt
from reliability.model import State
from reliability.places import PLACES, LocalPlace
from reliability.report import Findings, Order
from reliability.scenarios import SCENARIOS
from reliability.truth import everything, numbers_of, samples, serials, wrong_values
from zarrpipe import ZarrData
from zarrpipe.store.cache.directory import CacheConfig
from zarrpipe.store.read.view import StoreView

_MIB = 64
_KIB = (0, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 512, 1024, 2048, 8192)
_CODES = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_ENTER = ("unshare", "--mount", "--map-root-user")
_SAMPLES = 2000

Room = Callable[[int], contextlib.AbstractContextManager[None]]
"""Leaves so many KiB to be written, until the end of the block."""


def run(order: Order) -> Findings:
    """Go through every scenario with ever more room, until it needs no more."""
    small = order.work / "disk"
    small.mkdir()
    given = json.dumps({**asdict(order), "work": str(order.work)})
    enter = list(_ENTER) if _can_mount(small) else []
    done = subprocess.run(
        [*enter, sys.executable, "-c", "from reliability.disk import inside; inside()", given],
        cwd=Path(__file__).parents[1],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RELIABILITY_DISK": "small" if enter else ""},
    )
    result = order.work / "found.json"
    found = Findings.from_json(result.read_text()) if result.exists() else Findings()
    if done.returncode:
        name = signal.Signals(-done.returncode).name if done.returncode < 0 else "an error"
        at = order.work / "where"
        where = at.read_text() if at.exists() else "the beginning"
        found.add("crashed", f"{where}: the process ended with {name}")
    found.facts["disk"] = "a small tmpfs" if enter else "a limit on the size of files"
    return found


def _can_mount(small: Path) -> bool:
    if shutil.which(_ENTER[0]) is None:
        return False
    command = [*_ENTER, "mount", "-t", "tmpfs", "none", str(small)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def inside() -> None:
    """Do all of it, in a process that may mount a disk."""
    faulthandler.enable()
    warnings.simplefilter("ignore", RuntimeWarning)  # it was emptied, not all is removed
    given = json.loads(sys.argv[1])
    order = Order(**{**given, "work": Path(given["work"])})
    small, found = order.work / "disk", Findings()
    room: Room = _short_files
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if os.environ["RELIABILITY_DISK"]:
        command = ["mount", "-t", "tmpfs", "-o", f"size={_MIB}m", "none", str(small)]
        subprocess.run(command, check=True)

        def room(kib: int) -> contextlib.AbstractContextManager[None]:
            return _full_disk(small, kib)

    for kind in ("plain", "compressed"):
        for name, scenario in SCENARIOS.items():
            where = f"{name} on a {kind} store"
            if order.only not in where:
                continue
            place = PLACES[kind](small / "stores")
            assert isinstance(place, LocalPlace)
            prepared = scenario.prepare(place)
            place.keep()
            _climb(
                Trial(place, scenario, where, found),
                prepared,
                room,
                order.count,
                order.work / "where",
            )
            shutil.rmtree(small / "stores")
    if order.only in "a cache":
        _caches(order.work, small, room, found)
    (order.work / "found.json").write_text(found.as_json())


def _climb(trial: Trial, prepared: State, room: Room, most: int | None, at: Path) -> None:
    """Make a call with ever more room, until it needs no more."""
    steps = _KIB if most is None else _KIB[:: max(1, len(_KIB) // most)]
    gc.collect()
    for kib in steps:
        trial.place.restore()
        hand, state = trial.scenario.begin(trial.place, prepared)
        step = trial.scenario.step(trial.place, state)
        where = f"{trial.where}, {kib} KiB of room"
        at.write_text(where)
        with room(kib):
            raised = attempt(hand, step, _CODES)
            left = trial.judge(where, state, step, raised)
        trial.found.done["full" if raised else "had room enough"] += 1
        if left is not None:
            left = trial.recover(where, hand, state, left, step, raised)
        del hand
        gc.collect()
        if left is not None:
            trial.go_on(where, left)
        if raised is None:
            return
    trial.found.done[f"never had room enough: {trial.where}"] += 1


def _caches(work: Path, small: Path, room: Room, found: Findings) -> None:
    """Cached rows on a disk that is full: an error or right values, and then all of them."""
    far = work / "far"
    numbers = numbers_of(0, _SAMPLES, None)
    zstd = {"chunk_size": 256, "compressors": ("zstd",)}
    with ZarrData(far, config=dict.fromkeys(("meta", "core", "custom"), zstd)) as sink:
        sink.write(samples(numbers))
    for kib in _KIB:
        cache = small / "cache"
        view = StoreView(far, CacheConfig.of(cache, None))
        where = f"a cache with {kib} KiB of room"
        (work / "where").write_text(where)
        with room(kib):
            full = _read(view, where, found)
        found.done["cache full" if full else "cache had room enough"] += 1
        if _read(view, f"{where}, then with more", found):
            found.add("stuck", f"{where}: it cannot be read once there is room again")
        view.close()
        shutil.rmtree(cache, ignore_errors=True)
    if serials(everything(far)) != numbers.tolist():
        found.add("lost", "the store that was cached")


def _read(view: StoreView, where: str, found: Findings) -> bool:
    """Read everything; whether the disk was full."""
    try:
        there = view.gather(numbers_of(0, view.num_samples, None))
    except OSError as error:
        if error.errno not in _CODES:
            found.add("unclear", f"{where}: {type(error).__name__}: {error}")
        return True
    except Exception as error:  # noqa: BLE001  it is told
        found.add("unclear", f"{where}: {type(error).__name__}: {error}")
        return True
    wrong = wrong_values(there)
    if wrong or len(serials(there)) != _SAMPLES:
        found.add("wrong", f"{where}: {wrong or 'samples are missing'}")
    return False


@contextlib.contextmanager
def _full_disk(small: Path, kib: int) -> Iterator[None]:
    """Fill a disk but for some KiB."""
    ballast = small / "ballast"
    with ballast.open("wb") as file:
        there = os.statvfs(small)
        size = there.f_bavail * there.f_frsize - kib * 1024
        if size > 0:
            os.posix_fallocate(file.fileno(), 0, size)
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def _short_files(kib: int) -> Iterator[None]:
    """Let no file become longer than some KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
