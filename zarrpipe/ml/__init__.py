"""Force fields that are trained from a store, and what runs on their checkpoints.

`ForceField` is the Lightning module of the recipes: a potential of a well-kept library, a loss over
the labels that are there, reference energies, errors by label. `load` gives a committee of
checkpoints; `ForceFieldCalculator` hands it to ASE, `TorchSimModel` to torch-sim. The extra
``train`` installs what they need.

    field = ForceField.load_from_checkpoint("runs/ethanol/checkpoints/best.ckpt")
    energy, forces, stress = field.predict(batch, stress=True)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zarrpipe.ml.averaging import WeightEMA
    from zarrpipe.ml.calculator import ForceFieldCalculator
    from zarrpipe.ml.committee import Committee, load
    from zarrpipe.ml.force_field import ForceField
    from zarrpipe.ml.labels import Prediction
    from zarrpipe.ml.potentials import POTENTIALS, Edges, MACEPotential, Potential, SchNetPotential
    from zarrpipe.ml.predictions import CommitteePredictor, PredictionWriter
    from zarrpipe.ml.selection import Selection
    from zarrpipe.ml.torch_sim import TorchSimModel

__all__ = [
    "POTENTIALS",
    "Committee",
    "CommitteePredictor",
    "Edges",
    "ForceField",
    "ForceFieldCalculator",
    "MACEPotential",
    "Potential",
    "Prediction",
    "PredictionWriter",
    "SchNetPotential",
    "Selection",
    "TorchSimModel",
    "WeightEMA",
    "load",
]

_HOMES = {
    "POTENTIALS": "potentials",
    "Committee": "committee",
    "CommitteePredictor": "predictions",
    "Edges": "potentials",
    "ForceField": "force_field",
    "ForceFieldCalculator": "calculator",
    "MACEPotential": "potentials",
    "Potential": "potentials",
    "Prediction": "labels",
    "PredictionWriter": "predictions",
    "SchNetPotential": "potentials",
    "Selection": "selection",
    "TorchSimModel": "torch_sim",
    "WeightEMA": "averaging",
    "load": "committee",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, as ASE and torch-sim are not always installed."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"zarrpipe.ml.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'zarrpipe.ml' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
