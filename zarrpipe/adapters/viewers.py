"""Widgets that show a structure in a notebook, by the library that is installed."""

import importlib.util
import os
import sys
from collections.abc import Callable
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from zarrpipe.adapters.ase import to_ase
from zarrpipe.data.system import AtomicData
from zarrpipe.errors import ArgumentError, MissingLibraryError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from ase import Atoms

_LONGEST_ARROW = 1.5
_SIZE = {"width": 480, "height": 360}


def view(data: AtomicData, viewer: str | None = None, name: str = "") -> Any:
    """Widget of a system, which `name` tells from others; see `AtomicData.view`."""
    if viewer is not None and viewer not in _VIEWERS:
        raise ArgumentError(f"viewer={viewer!r}, expected one of {', '.join(_VIEWERS)}, or None")
    draw = _VIEWERS[_installed() if viewer is None else viewer][1]
    return draw(data.detach().cpu(), name)


def _installed() -> str:
    """The first viewer that is installed."""
    for name, (module, _) in _VIEWERS.items():
        if importlib.util.find_spec(module) is not None:
            return name
    raise MissingLibraryError(
        "a structure is shown by chemiscope, py3Dmol or ase, and none of them is installed: "
        "install them with pip install 'zarrpipe[report]'"
    )


def _chemiscope(data: AtomicData, name: str) -> Any:
    """Widget of chemiscope under a title, with the forces as arrows where there are some."""
    chemiscope = require("chemiscope", "report")
    shapes: dict[str, Any] = {}
    settings: dict[str, Any] = {"unitCell": True, "keepOrientation": True}
    if "forces" in data and data.num_nodes:
        forces = data["forces"].double().numpy()
        longest = float(np.linalg.norm(forces, axis=1).max())
        if np.isfinite(longest) and longest > 0:
            arrows = [{"vector": (row * _LONGEST_ARROW / longest).tolist()} for row in forces]
            look = {"global": {"baseRadius": 0.08, "headRadius": 0.16, "headLength": 0.3}}
            shapes = {"forces": {"kind": "arrow", "parameters": {**look, "atom": arrows}}}
            settings["shape"] = "forces"
    (atoms,) = to_ase(data)
    title = [name] if name else []
    title.append(atoms.get_chemical_formula())
    if "energy" in data:
        title.append(f"{float(data['energy']):.6g} eV")
    return chemiscope.show(
        [atoms],
        metadata={"name": ", ".join(title)},
        shapes=shapes or None,
        settings={"structure": [settings]},
        mode="structure",
        cache_structures=False,  # so that a notebook that was saved shows it without a kernel
    )


def _py3dmol(data: AtomicData, _: str) -> Any:
    """View of py3Dmol: balls and sticks, and the cell where there is one."""
    shown, (atoms,) = require("py3Dmol", "report").view(**_SIZE), to_ase(data)
    shown.addModel(*_text_of(atoms))
    shown.setStyle({"stick": {"radius": 0.12}, "sphere": {"scale": 0.28}})
    if atoms.cell.rank == 3:
        shown.addUnitCell()
    shown.zoomTo()
    return shown


def _text_of(atoms: "Atoms") -> tuple[str, str]:
    """Structure as text, and its format: CIF where there is a cell."""
    from ase.io import write  # noqa: PLC0415

    bare = atoms.copy()
    bare.calc, bare.info = None, {}
    if bare.cell.rank == 3:
        cif = BytesIO()
        write(cif, bare, format="cif")
        return cif.getvalue().decode(), "cif"
    xyz = StringIO()
    write(xyz, bare, format="xyz")
    return xyz.getvalue(), "xyz"


def _ase(data: AtomicData, _: str) -> Any:
    """HTML of ASE in a notebook, its own window elsewhere."""
    visualize, (atoms,) = require("ase.visualize", "report"), to_ase(data)
    if "ipykernel" in sys.modules:
        return visualize.view(atoms, viewer="x3d")
    shown = sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if not shown:
        raise ArgumentError(
            "viewer='ase' opens a window, and there is no display (DISPLAY is not set): run it in "
            "a notebook, or write a file, as ase.io.write('one.png', zarrpipe.ase.to_ase(system))"
        )
    return visualize.view(atoms, viewer="ase")


_VIEWERS: dict[str, tuple[str, Callable[[AtomicData, str], Any]]] = {
    "chemiscope": ("chemiscope", _chemiscope),
    "py3dmol": ("py3Dmol", _py3dmol),
    "ase": ("ase", _ase),
}
"""By name: the module that is imported, and what draws."""
