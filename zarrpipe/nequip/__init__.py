"""NequIP and Allegro: training by ``nequip-train`` from stores.

Run with nequip 0.19.1 and nequip-allegro 0.8.3.
"""

from zarrpipe.libraries import require

require("nequip.data.datamodule", "nequip")

from zarrpipe.nequip.data_module import ZarrDataModule  # noqa: E402
from zarrpipe.nequip.transforms import NequIPTransforms  # noqa: E402

__all__ = ["NequIPTransforms", "ZarrDataModule"]
