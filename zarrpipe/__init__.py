"""One Zarr store that a simulation writes into and a training run reads out of."""

from zarrpipe.data.atomic import AtomicData
from zarrpipe.data.batch import Batch

__all__ = ["AtomicData", "Batch"]
