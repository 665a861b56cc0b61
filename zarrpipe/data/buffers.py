"""Memory for batches: one buffer holds every array of a batch and is reused once it is free.

Fresh pages cost as much as the copy into them, and one buffer crosses to a GPU or to another
process in one copy.
"""

import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT = 64
"""Arrays of a batch begin at multiples of this many bytes in its buffer."""

Bytes = npt.NDArray[np.uint8]
Key = TypeVar("Key")

_MOST_BUFFERS = 4
_LARGEST_KEPT = 1 << 26


class BufferPool:
    """A few buffers that are lent until nothing refers to them.

    The reference count tells whether an array or tensor made of a buffer is alive. With CUDA in use
    in this process, buffers are page-locked and come from torch's own pool, which also waits for
    copies that are under way.

    Examples
    --------
    >>> pool = BufferPool()
    >>> first, _ = pool.take(1024)
    >>> address = first.ctypes.data
    >>> del first
    >>> pool.take(960)[0].ctypes.data == address
    True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffers: list[Bytes] = [np.empty(0, dtype=np.uint8)]
        self._unused = sys.getrefcount(self._buffers[0])

    def take(self, nbytes: int) -> tuple[Bytes, torch.Tensor | None]:
        """Array of `nbytes`, a multiple of `ALIGNMENT`, and its tensor if it is page-locked."""
        if page_locked():
            pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
            return pinned.numpy(), pinned
        return self.lend(nbytes)[:nbytes], None

    def lend(self, nbytes: int) -> Bytes:
        """Array of at least `nbytes`, which is not page-locked."""
        if not self._lock.acquire(blocking=False):  # or a fork might wait for a thread it has not
            return np.empty(nbytes, dtype=np.uint8)
        try:
            for place in range(len(self._buffers)):
                if sys.getrefcount(self._buffers[place]) == self._unused:
                    if nbytes <= len(self._buffers[place]):
                        return self._buffers[place]
                    spare: int | None = place
                    break
            else:
                spare = None
            fresh = np.empty(nbytes + nbytes // 4, dtype=np.uint8)
            if nbytes <= _LARGEST_KEPT:
                if spare is not None:
                    self._buffers[spare] = fresh
                elif len(self._buffers) < _MOST_BUFFERS:
                    self._buffers.append(fresh)
            return fresh
        finally:
            self._lock.release()

    def __reduce__(self) -> tuple[type["BufferPool"], tuple[()]]:
        return BufferPool, ()


def page_locked() -> bool:
    """Whether batches are to be in page-locked memory, as CUDA is in use in this process."""
    return torch.cuda.is_initialized()  # type: ignore[no-untyped-call,no-any-return]


def moved(
    buffer: torch.Tensor,
    tensors: dict[Key, torch.Tensor],
    copy: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, dict[Key, torch.Tensor]]:
    """Copy a buffer in one piece; return the copy, and the tensors as parts of it.

    A tensor that is not a contiguous part of the buffer, or needs a gradient, is copied separately.
    """
    whole = copy(buffer)
    storage, first, result = whole.untyped_storage(), buffer.data_ptr(), {}
    base = whole.storage_offset()
    for key, tensor in tensors.items():
        item, offset = tensor.element_size(), tensor.data_ptr() - first
        if (
            not 0 <= offset <= buffer.nbytes - tensor.nbytes
            or (base + offset) % item
            or not tensor.is_contiguous()
            or tensor.device != buffer.device
            or tensor.requires_grad
        ):
            result[key] = copy(tensor)
            continue
        # No view: those of one tensor share the count of changes in place that backward looks at.
        made = torch.empty(0, dtype=tensor.dtype, device=whole.device)
        result[key] = made.set_(storage, (base + offset) // item, tensor.shape, tensor.stride())
    return whole, result


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """Tensor that owns its memory, so that its pickle holds no other tensor's bytes."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
