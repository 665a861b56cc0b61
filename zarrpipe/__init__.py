"""One Zarr store that a simulation writes into and a training run reads out of."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zarrpipe.data.batch import Batch, collate
    from zarrpipe.data.levels import Level
    from zarrpipe.data.system import AtomicData
    from zarrpipe.dataset.info import info
    from zarrpipe.dataset.store_info import StoreInfo
    from zarrpipe.dataset.zarr_dataset import ZarrDataset
    from zarrpipe.formats.read.read_into import read_into
    from zarrpipe.formats.write.card import write_card
    from zarrpipe.formats.write.write_out import write_out
    from zarrpipe.reporting.measure import report
    from zarrpipe.sink import ZarrData
    from zarrpipe.store.adopt import adopt
    from zarrpipe.store.api import AtomicDataZarrWriter
    from zarrpipe.store.check.run import check
    from zarrpipe.store.format.config import ZarrArrayConfig, ZarrWriteConfig
    from zarrpipe.store.format.metadata import Mark
    from zarrpipe.store.parts.parent_marks import mark
    from zarrpipe.store.reader import AtomicDataZarrReader
    from zarrpipe.store.rewrite.copy import copy
    from zarrpipe.store.rewrite.merge import compact, merge
    from zarrpipe.training.data_module import ZarrDataModule
    from zarrpipe.training.flow import batch_size_fn, length_fn
    from zarrpipe.training.monitor import DataMonitor
    from zarrpipe.training.sampler import GraphBatchSampler
    from zarrpipe.training.splits.index_files import write_split

__all__ = [
    "AtomicData",
    "AtomicDataZarrReader",
    "AtomicDataZarrWriter",
    "Batch",
    "DataMonitor",
    "GraphBatchSampler",
    "Level",
    "Mark",
    "StoreInfo",
    "ZarrArrayConfig",
    "ZarrData",
    "ZarrDataModule",
    "ZarrDataset",
    "ZarrWriteConfig",
    "adopt",
    "batch_size_fn",
    "check",
    "collate",
    "compact",
    "copy",
    "info",
    "length_fn",
    "mark",
    "merge",
    "parts",
    "read_into",
    "report",
    "write_card",
    "write_out",
    "write_split",
]

_HOMES = {
    "AtomicData": "data.batch",
    "AtomicDataZarrReader": "store.reader",
    "AtomicDataZarrWriter": "store.api",
    "Batch": "data.batch",
    "DataMonitor": "training.monitor",
    "GraphBatchSampler": "training.sampler",
    "Level": "data.levels",
    "Mark": "store.format.metadata",
    "StoreInfo": "dataset.store_info",
    "ZarrArrayConfig": "store.format.config",
    "ZarrData": "sink",
    "ZarrDataModule": "training.data_module",
    "ZarrDataset": "dataset.zarr_dataset",
    "ZarrWriteConfig": "store.format.config",
    "adopt": "store.adopt",
    "batch_size_fn": "training.flow",
    "check": "store.check.run",
    "collate": "data.batch",
    "compact": "store.rewrite.merge",
    "copy": "store.rewrite.copy",
    "info": "dataset.info",
    "length_fn": "training.flow",
    "mark": "store.parts.parent_marks",
    "merge": "store.rewrite.merge",
    "parts": "store.backend.parts",
    "read_into": "formats.read.read_into",
    "report": "reporting.measure",
    "write_card": "formats.write.card",
    "write_out": "formats.write.write_out",
    "write_split": "training.splits.index_files",
}
"""Module of each public name, imported when the name is first asked for."""

_MODULES = (
    "adapters",
    "ase",
    "errors",
    "fairchem",
    "mace",
    "matgl",
    "ml",
    "nodes",
    "schnetpack",
    "testing",
    "torch_sim",
    "torchmd_net",
    "transforms",
)


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch, zarr and Lightning together take two seconds."""
    if name in _HOMES:
        found = getattr(importlib.import_module(f"zarrpipe.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    if name in _MODULES:
        return importlib.import_module(f"zarrpipe.{name}")
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'zarrpipe' has no attribute {name!r}")


def _version() -> str:
    """Version of the installed package."""
    try:
        return importlib.metadata.version("zarrpipe")
    except importlib.metadata.PackageNotFoundError as error:
        raise AttributeError(
            "zarrpipe is not installed, so that its version is not known"
        ) from error


def __dir__() -> list[str]:
    return [*__all__, *_MODULES, "__doc__", "__version__"]
