"""What kind of file system a directory is on."""

import ctypes
import sys
from pathlib import Path

from zarrpipe.store.backend.libc import libc

_FAR = frozenset(
    {
        0x6969,  # NFS
        0x517B,  # SMB
        0xFE534D42,  # SMB 2 and 3
        0xFF534D42,  # CIFS
        0x65735546,  # FUSE: sshfs, s3fs, virtiofs
        0x01021997,  # 9P
        0x5346414F,  # AFS
        0x6B414653,  # AFS of the kernel
        0x73757245,  # Coda
    }
)
_ROOM_FOR_ANSWER = 512


def is_far(directory: Path) -> bool:
    """Whether files of a directory may change on another machine behind the page cache.

    There a page that was mapped before another host filled it can stay as it was, and a file that
    another host removes takes its pages with it. Cluster file systems that keep mappings coherent
    (Lustre, GPFS) are not among them. Known on Linux; False elsewhere, and for what is not there.
    """
    if sys.platform != "linux" or not hasattr(libc(), "statfs"):
        return False
    answer = ctypes.create_string_buffer(_ROOM_FOR_ANSWER)
    if libc().statfs(bytes(directory), answer) != 0:
        return False
    kind = ctypes.cast(answer, ctypes.POINTER(ctypes.c_long))[0]
    return kind & 0xFFFFFFFF in _FAR
