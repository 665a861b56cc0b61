"""One writer at a time in an object store: a lease that is renewed, and expires with its holder.

The lease is the object ``meta/atoms_ptr/.lock``. A writer creates it, or replaces a released or
expired one, by a conditional put, and renews it in the background. It expires when it has not been
renewed for `EXPIRES` seconds by the clock of the object store, or at once if its holder was a
process of this machine that is gone. Its holder stops writing `VALID` seconds after it asked for
the last renewal. Each holder has a token, which is larger than those before it.
"""

import json
import os
import socket
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from zarrpipe.errors import StoreLockedError
from zarrpipe.store.backend.lock import LOCK_FILE, Holder

VALID, EXPIRES = 25.0, 30.0
"""Seconds without renewal until a holder stops writing, and until another writer takes over."""

_RENEWAL = 5.0
_TRIALS = 8


@dataclass(frozen=True)
class _Claim:
    """Content of the lease: its holder, and how often it was renewed.

    `failed` is True if it was released after a change that failed, of which requests may be late.
    """

    host: str
    pid: int
    since: float
    machine: str
    name: str
    token: int
    renewed: int = 0
    released: bool = False
    failed: bool = False

    @property
    def holder(self) -> Holder:
        return Holder(self.host, self.pid, self.since)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def of(cls, content: bytes) -> "_Claim":
        """Read a lease; one that cannot be read counts as released."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return cls("?", 0, 0.0, "", "", token=0, released=True)


class Lease:
    """The right to write a store in an object store, from `acquire` to `release`.

    `fence` is the token of a lease whose last holder may still have requests on their way, else
    None.
    """

    enforced = True

    def __init__(
        self, place: "_LeaseObject", claim: _Claim, tag: str, began: float, *, settled: bool
    ) -> None:
        self._renewal = _Renewal(place, claim, tag, began)
        self._pid = os.getpid()
        self.fence = None if settled else claim.token
        self._finalizer = weakref.finalize(self, self._renewal.end)
        threading.Thread(target=self._renewal.run, name="zarrpipe-lease", daemon=True).start()

    @classmethod
    def acquire(cls, store: Any, prefix: str) -> "Lease | None":
        """Acquire the lease of the store at a prefix of obstore's `store`.

        It is None, with a warning, for a place that ignores conditions of requests. Raises
        StoreLockedError if another writer has a lease that is not expired.
        """
        place = _LeaseObject(store, f"{prefix}/{LOCK_FILE}".lstrip("/"))
        claim = _Claim(
            socket.gethostname(), os.getpid(), time.time(), _machine(), uuid4().hex, token=1
        )
        for _ in range(_TRIALS):
            began, found, settled = _now(), place.read(), True
            if found is not None:
                held, tag = found
                settled = held.released and not held.failed
                if not held.released and not place.is_expired(held):
                    raise StoreLockedError(
                        f"{place} is held by {held.holder}: one writer at a time. If that writer "
                        f"is gone, the lease expires {EXPIRES:.0f} seconds after its last renewal"
                    )
                claim = replace(claim, token=held.token + 1)
            taken = place.put(claim, None if found is None else tag)
            if taken is None:
                continue
            if place.ignores_conditions(claim):
                place.remove()
                warnings.warn(
                    f"{place} ignores conditions of requests, so its stores have no lock: a "
                    "writer notices another one at its next append; let one process write",
                    stacklevel=6,
                )
                return None
            return cls(place, claim, taken, began, settled=settled)
        raise StoreLockedError(f"{place} is being taken by other writers: try again")

    @property
    def held(self) -> bool:
        """Whether this process has the lease."""
        return os.getpid() == self._pid

    @property
    def lapsed(self) -> bool:
        """Whether the lease was taken by another writer, or has expired."""
        return self._renewal.lapsed

    def guards(self, directory: Path) -> bool:
        """Whether this is the lease of the store at a directory: it is of no directory."""
        del directory
        return False

    def check(self, place: object) -> None:
        """Raise StoreLockedError if the lease was taken by another writer, or has expired."""
        self._renewal.check(place)

    def release(self, *, failed: bool = False) -> None:
        """Release the lease; a second call does nothing."""
        if self._finalizer.detach() is not None and self.held:
            self._renewal.end()
            self._renewal.release(failed=failed)


class _Renewal:
    """Renews a lease in a thread until `end`, or until another writer has taken it."""

    def __init__(self, place: "_LeaseObject", claim: _Claim, tag: str, began: float) -> None:
        self._place, self._claim, self._tag = place, claim, tag
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._valid_until, self._lost = began + VALID, False

    def end(self) -> None:
        """Stop renewing."""
        self._ended.set()

    def run(self) -> None:
        """Renew the lease until it ends."""
        while not self._ended.wait(_RENEWAL):
            with self._lock:
                if self._ended.is_set():
                    return
                began = _now()
                with suppress(Exception):  # the network may come back; `check` looks at the time
                    self._replace(replace(self._claim, renewed=self._claim.renewed + 1))
                    self._valid_until = began + VALID
                if self._lost:
                    return

    def _replace(self, claim: _Claim) -> None:
        tag = self._place.put(claim, self._tag)
        if tag is None:
            self._lost = True
        else:
            self._claim, self._tag = claim, tag

    @property
    def lapsed(self) -> bool:
        """See `Lease.lapsed`."""
        return self._lost or _now() > self._valid_until

    def check(self, place: object) -> None:
        """See `Lease.check`."""
        if self._lost:
            raise StoreLockedError(
                f"{place} was taken by another writer, since the lease of this one had expired: "
                "open it again"
            )
        if self.lapsed:
            raise StoreLockedError(
                f"{place}: the lease could not be renewed for {VALID:.0f} seconds, so another "
                "writer may have taken it: check the connection and open the store again"
            )

    def release(self, *, failed: bool) -> None:
        """Mark the lease as released; where that fails, it expires."""
        with self._lock:
            if not self._lost:
                with suppress(Exception):  # it expires then, as after a kill
                    self._replace(replace(self._claim, released=True, failed=failed))


class _LeaseObject:
    """The object that is the lease."""

    def __init__(self, store: Any, key: str) -> None:
        self._store, self._key = store, key

    def __str__(self) -> str:
        return f"{self._store} {self._key.removesuffix(LOCK_FILE).rstrip('/')}".rstrip()

    def read(self) -> tuple[_Claim, str] | None:
        """The lease and its entity tag; None if there is none."""
        from obstore import get  # noqa: PLC0415  an extra

        try:
            answer = get(self._store, self._key)
            return _Claim.of(bytes(answer.bytes())), str(answer.meta["e_tag"])
        except FileNotFoundError:
            return None

    def put(self, claim: _Claim, tag: str | None) -> str | None:
        """Put a lease in place of the one with a tag, or of none; None if there is another one.

        It is read back after an error, since the answer may have been lost.
        """
        from obstore import put  # noqa: PLC0415  an extra
        from obstore.exceptions import (  # noqa: PLC0415
            AlreadyExistsError,
            GenericError,
            NotFoundError,
            PreconditionError,
        )

        mode: Any = "create" if tag is None else {"e_tag": tag}
        for trial in range(_TRIALS):
            try:
                result = put(self._store, self._key, claim.to_bytes(), mode=mode)
                return str(result["e_tag"])
            except (AlreadyExistsError, GenericError, NotFoundError, PreconditionError):
                found = self.read()
                if found is not None and found[0] == claim:
                    return found[1]
                if (None if found is None else found[1]) != tag:
                    return None
                if trial == _TRIALS - 1:
                    raise
        return None

    def ignores_conditions(self, claim: _Claim) -> bool:
        """Whether a lease that was just put can be created again."""
        from obstore import put  # noqa: PLC0415  an extra
        from obstore.exceptions import (  # noqa: PLC0415
            AlreadyExistsError,
            GenericError,
            PreconditionError,
        )

        for trial in range(_TRIALS):
            try:
                put(self._store, self._key, claim.to_bytes(), mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            except GenericError:
                if trial == _TRIALS - 1:
                    raise
            else:
                return True
        return False

    def remove(self) -> None:
        """Remove the lease."""
        from obstore import delete  # noqa: PLC0415  an extra

        delete(self._store, self._key)

    def is_expired(self, claim: _Claim) -> bool:
        """Whether the holder is gone, or has not renewed the lease by the clock of the store."""
        from obstore import delete, head, put  # noqa: PLC0415  an extra

        if claim.machine == _machine() and not _is_alive(claim.pid):
            return True
        probe = f"{self._key}-{uuid4().hex}"
        put(self._store, probe, b"")
        try:
            now = head(self._store, probe)["last_modified"]
        finally:
            delete(self._store, probe)
        renewed = head(self._store, self._key)["last_modified"]
        # Times are whole seconds.
        return bool((now - renewed).total_seconds() > EXPIRES + 1)


def _now() -> float:
    """Seconds of a clock that runs on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def _machine() -> str:
    """Name of this machine since it was started, and of the name space of its processes."""
    parts: list[Callable[[], str]] = [
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: str(Path("/proc/self/ns/pid").stat().st_ino),
    ]
    try:
        return "-".join(part() for part in parts)
    except OSError:
        return uuid4().hex  # unlike any other: only the time counts


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
