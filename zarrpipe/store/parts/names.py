"""Name of the part of this process."""

import os
import re
import socket
import uuid

import torch.distributed as dist


def auto_part_name() -> str:
    """Rank of this process if it is one of several, else a unique name.

    The rank is that of torch.distributed, else of torchrun (``RANK``), else of SLURM
    (``SLURM_PROCID``, if ``SLURM_NTASKS`` is more than 1).
    """
    if dist.is_available() and dist.is_initialized():
        return str(dist.get_rank())
    if _number("RANK") is not None:
        return str(_number("RANK"))
    if (_number("SLURM_NTASKS") or 1) > 1 and _number("SLURM_PROCID") is not None:
        return str(_number("SLURM_PROCID"))
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0])[:40]
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _number(variable: str) -> int | None:
    """Number in an environment variable, if there is one."""
    text = os.environ.get(variable, "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
