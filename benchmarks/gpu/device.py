"""The device that is measured, by its name; on the CPU nothing is page-locked and nothing waits."""

import torch


def missing(device: torch.device) -> str:
    """Say why the device cannot be measured; "" if it can."""
    if device.type != "cuda" or torch.cuda.is_available():
        return ""
    built = torch.version.cuda
    why = f"built for CUDA {built}, finds none" if built else "was built without CUDA"
    return (
        f"no CUDA device: torch {torch.__version__} {why}. Name a Python whose torch sees one, as "
        "in make gpu PYTHON=python3"
    )


def described(device: torch.device) -> str:
    """Name of the device, with its memory and CUDA's release."""
    if device.type != "cuda":
        return str(device)
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GB, CUDA {torch.version.cuda}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_bytes(nbytes: int, device: torch.device, *, pinned: bool = True) -> torch.Tensor:
    """Bytes [nbytes] uint8 in memory, page-locked if the device needs it and `pinned` says so."""
    return torch.zeros(nbytes, dtype=torch.uint8, pin_memory=pinned and device.type == "cuda")
