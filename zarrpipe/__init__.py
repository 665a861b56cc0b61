"""One Zarr store that a simulation writes into and a training run reads out of."""

import importlib
from typing import TYPE_CHECKING, Any

from zarrpipe.data.atomic import AtomicData
from zarrpipe.data.batch import Batch
from zarrpipe.dataset import ZarrDataset, collate
from zarrpipe.samplers import GraphBatchSampler
from zarrpipe.sides.index_files import write_split
from zarrpipe.sink import ZarrData
from zarrpipe.store.check.run import check
from zarrpipe.store.config import ZarrArrayConfig, ZarrWriteConfig
from zarrpipe.store.merge import compact, merge
from zarrpipe.store.reader import AtomicDataZarrReader
from zarrpipe.store.writer import AtomicDataZarrWriter

if TYPE_CHECKING:
    from zarrpipe.callbacks import DataMonitor
    from zarrpipe.datamodule import ZarrDataModule

__all__ = [
    "AtomicData",
    "AtomicDataZarrReader",
    "AtomicDataZarrWriter",
    "Batch",
    "DataMonitor",
    "GraphBatchSampler",
    "ZarrArrayConfig",
    "ZarrData",
    "ZarrDataModule",
    "ZarrDataset",
    "ZarrWriteConfig",
    "check",
    "collate",
    "compact",
    "merge",
    "write_split",
]


_WITH_LIGHTNING = {"DataMonitor": "callbacks", "ZarrDataModule": "datamodule"}


def __getattr__(name: str) -> Any:
    """Import Lightning, which takes a second, only when its part is asked for."""
    if name in _WITH_LIGHTNING:
        return getattr(importlib.import_module(f"zarrpipe.{_WITH_LIGHTNING[name]}"), name)
    raise AttributeError(f"module 'zarrpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
