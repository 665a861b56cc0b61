"""Structures and their map for the browser: what chemiscope's JavaScript reads, and that script."""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.compat import CHEMISCOPE_SCRIPT
from zarrpipe.reporting.contents import FloatArray, Structures
from zarrpipe.reporting.texts import words
from zarrpipe.store.query.elements import SYMBOLS

MAP = ("map_1", "map_2")
_MOST_ATOMS = 60_000  # about 3 MB of page, with forces
_LONGEST_ARROW = (1.8, 0.15)  # Å, or of the extent of a structure where that is more
_SHORTEST_ARROW = 0.01  # Å, so that there is none of length zero
_FARTHEST = (
    500.0  # Å from the middle of a structure; 3Dmol's search for bonds takes memory by volume
)
_COLOURS = ("energy_off", "energy_per_atom", "max_force")
"""Properties by which points of the map are coloured at first, the best first."""


@dataclass(frozen=True)
class Script:
    """Chemiscope's JavaScript and the licence under which it is passed on."""

    text: str
    licence: str
    version: str


def chemiscope_script() -> Script | None:
    """The script that the installed chemiscope has for pages; None if it is not installed."""
    try:
        package = Distribution.from_name("chemiscope")
    except PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(CHEMISCOPE_SCRIPT)))
    if not path.is_file():
        return None
    licence = (
        package.read_text("licenses/LICENSE") or package.read_text("LICENSE") or "BSD-3-Clause"
    )
    return Script(path.read_text("utf-8"), licence.strip(), package.version)


def packed(text: str) -> str:
    """Text that is compressed and has letters only, so that it cannot end an HTML element."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def that_fit(structures: Structures) -> Structures:
    """The structures that a page can hold: the worst of each order in turn, up to a size."""
    sizes = structures.batch.num_nodes_per_graph.numpy()
    if sizes.sum() <= _MOST_ATOMS:
        return structures
    kept, atoms = set[int](), 0
    for place in dict.fromkeys(_in_turn(structures)):
        if atoms + sizes[place] <= _MOST_ATOMS:
            kept.add(place)
            atoms += int(sizes[place])
    places = np.array(sorted(kept), dtype=np.int64)
    new_places = {old: new for new, old in enumerate(places.tolist())}
    return replace(
        structures,
        batch=structures.batch.index_select(places.tolist()),
        samples=structures.samples[places],
        properties={
            name: [values[place] for place in places.tolist()]
            for name, values in structures.properties.items()
        },
        orders={
            name: np.array([new_places[old] for old in order.tolist() if old in new_places], int)
            for name, order in structures.orders.items()
        },
    )


def _in_turn(structures: Structures) -> list[int]:
    """Places of all structures: first the worst of each order, then the second, and so on."""
    orders = [order.tolist() for order in structures.orders.values()]
    orders.append(list(range(len(structures.samples))))
    most = max(map(len, orders))
    return [order[rank] for rank in range(most) for order in orders if rank < len(order)]


def dataset(structures: Structures) -> dict[str, Any]:
    """Structures, properties, force arrows and settings, as chemiscope reads them.

    Numbers that are not finite are null. Atoms without a finite position, or so far away that the
    rest would be a dot, are left out.
    """
    properties = _properties(structures)
    drawn = [_structure(structures, place) for place in range(len(structures.samples))]
    has_cell = any("cell" in one for one, _ in drawn)
    has_forces = any(np.any(arrows) for _, arrows in drawn)
    settings: dict[str, Any] = {"unitCell": has_cell, "bonds": True, "playbackDelay": 500}
    data: dict[str, Any] = {
        "meta": {"name": "structures"},
        "structures": [one for one, _ in drawn],
        "properties": properties,
    }
    if has_forces:
        settings["shape"] = "forces"
        data["shapes"] = {"forces": _arrows([arrows for _, arrows in drawn])}
    data["settings"] = {"structure": [settings], "map": _map_settings(properties)}
    return data


def _structure(structures: Structures, place: int) -> tuple[dict[str, Any], FloatArray]:
    """One structure, and its forces [V, 3] as arrows in Å, zero where there are none."""
    batch = structures.batch
    atoms = slice(*batch.batch_ptr[place : place + 2].tolist())
    positions = batch["positions"][atoms].double().numpy()
    numbers = batch["atomic_numbers"][atoms].numpy()
    forces = np.zeros_like(positions)
    if "forces" in batch.fields and bool(batch.has("forces")[place]):
        forces = np.nan_to_num(batch["forces"][atoms].double().numpy(), posinf=0.0, neginf=0.0)
    shown = _drawable(positions)
    positions, numbers, forces = positions[shown], numbers[shown], forces[shown]
    longest = float(np.linalg.norm(forces, axis=1).max(initial=0.0))
    one: dict[str, Any] = {
        "size": len(numbers),
        "names": [_symbol(number) for number in numbers.tolist()],
        **{axis: _rounded(positions[:, column]) for column, axis in enumerate("xyz")},
    }
    cell = _cell(structures, place)
    if cell is not None:
        one["cell"] = _rounded(cell.ravel())
    extent = float(np.ptp(positions, axis=0).max()) if len(positions) else 0.0
    length = max(_LONGEST_ARROW[0], _LONGEST_ARROW[1] * extent)
    return one, forces * (length / longest) if longest > 0 else forces


def _drawable(positions: FloatArray) -> npt.NDArray[np.intp]:
    """Which atoms are drawn: those with a place, and not far from the others."""
    placed = np.flatnonzero(np.isfinite(positions).all(axis=1))
    if len(placed) == 0:
        return placed
    middle = np.median(positions[placed], axis=0)
    near: npt.NDArray[np.intp] = placed[np.abs(positions[placed] - middle).max(axis=1) < _FARTHEST]
    return near


def _cell(structures: Structures, place: int) -> FloatArray | None:
    """Cell [3, 3] of a structure that is periodic in some direction and has one."""
    batch = structures.batch
    if "cell" not in batch.fields or not bool(batch.has("cell")[place]):
        return None
    if "pbc" in batch.fields and not bool(batch["pbc"][place].any()):
        return None
    cell: FloatArray = batch["cell"][place].reshape(3, 3).double().numpy()
    drawn = np.isfinite(cell).all() and abs(np.linalg.det(cell)) > 1e-6
    return cell if drawn and np.abs(cell).max() < _FARTHEST else None


def _arrows(blocks: Sequence[FloatArray]) -> dict[str, Any]:
    """Arrows as chemiscope draws them: unit vectors, and the length as a scale of the whole."""
    arrows = []
    for block in blocks:
        lengths = np.maximum(np.linalg.norm(block, axis=1), _SHORTEST_ARROW)
        for direction, length in zip(block / lengths[:, None], lengths, strict=True):
            arrows.append({"vector": _rounded(direction, 3), "scale": round(float(length), 3)})
    whole = {"baseRadius": 0.05, "headRadius": 0.13, "headLength": 0.3, "color": "#e6007e"}
    return {"kind": "arrow", "parameters": {"global": whole, "atom": arrows}}


def _properties(structures: Structures) -> dict[str, Any]:
    """Properties of numbers, and the places in the list, which chemiscope counts from 0."""
    found: dict[str, Any] = {}
    columns = {"sample": structures.samples.tolist(), **structures.properties}
    for name, values in columns.items():
        if all(isinstance(value, int | float | np.number) for value in values):
            found[words(name)] = {"target": "structure", "values": _rounded(values)}
            if unit := structures.units.get(name):
                found[words(name)]["units"] = unit
    if "store" in columns:  # "A" or "B"; other strings stay out of the script, which shows HTML
        found["store"] = {"target": "structure", "values": list(columns["store"])}
    return found


def _map_settings(properties: dict[str, Any]) -> dict[str, Any]:
    """Axes and colour of the map at first, of the properties that there are."""
    x, y = map(words, MAP)
    if not {x, y} <= set(properties):
        x, y = "sample", next(iter(reversed(properties)))
    settings: dict[str, Any] = {"x": {"property": x}, "y": {"property": y}}
    if "store" in properties:
        settings["symbol"] = "store"
    colour = next((name for name in map(words, _COLOURS) if name in properties), "")
    if colour:
        values = [value for value in properties[colour]["values"] if value is not None]
        settings["color"] = {"property": colour, "palette": "viridis"}
        settings["color"] |= _range(np.array(values, dtype=np.float64))
    return settings


def _range(values: FloatArray) -> dict[str, float]:
    """Ends of the colours, so that an outlier does not leave one colour to all others."""
    if len(values) == 0:
        return {}
    first, middle, third = np.percentile(values, (25, 50, 75))
    reach = 4 * (third - first)
    low, high = max(values.min(), middle - reach), min(values.max(), middle + reach)
    return {"min": float(low), "max": float(high)} if low < high else {}


def _symbol(number: int) -> str:
    return SYMBOLS[number] if 0 < number < len(SYMBOLS) else "X"


def _rounded(values: Sequence[float] | FloatArray, digits: int = 6) -> list[float | None]:
    """Numbers to some significant digits, None for what is not finite."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in map(float, values)]


def to_json(data: Any) -> str:
    """JSON by the standard: a number that is not finite is an error."""
    return json.dumps(data, allow_nan=False, separators=(",", ":"))
