"""The registry of adapters, and `as_batch`, which finds the adapter of an object."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import GeneratorType
from typing import Any

from zarrpipe.adapters.ase import from_ase_for_store
from zarrpipe.adapters.mace import from_mace
from zarrpipe.adapters.nvalchemi import from_nvalchemi
from zarrpipe.adapters.pyg import from_pyg
from zarrpipe.adapters.pymatgen import from_pymatgen_for_store
from zarrpipe.adapters.torch_sim import from_torch_sim
from zarrpipe.data.batch import Batch
from zarrpipe.data.system import AtomicData
from zarrpipe.errors import ArgumentError, ArgumentTypeError

Converted = Batch | AtomicData | Sequence[AtomicData | Batch]


@dataclass(frozen=True)
class Adapter:
    """Conversion of the objects of class `name` of a module in `package`.

    `convert` takes one object, or a list of them if `takes_list`, and the options of `as_batch`.
    """

    package: str
    name: str
    convert: Callable[..., Converted]
    takes_list: bool = False

    def defines(self, cls: type) -> bool:
        """Whether this adapter was registered for `cls`."""
        module = cls.__module__
        return cls.__name__ == self.name and (
            module == self.package or module.startswith(self.package + ".")
        )

    def __call__(self, objects: list[Any], **options: Any) -> Batch:
        """Batch of the objects, in order."""
        if self.takes_list:
            return _concatenate([self.convert(objects, **options)])
        return _concatenate([self.convert(obj, **options) for obj in objects])


_ADAPTERS: list[Adapter] = [
    Adapter("ase", "Atoms", from_ase_for_store, takes_list=True),
    Adapter("torch_geometric.data", "Data", from_pyg),
    Adapter("torch_sim", "SimState", from_torch_sim),
    Adapter("nvalchemi.data", "Batch", from_nvalchemi),
    Adapter("nvalchemi.data", "AtomicData", from_nvalchemi),
    Adapter("mace.tools.torch_geometric", "Data", from_mace),
    Adapter("pymatgen.core", "IStructure", from_pymatgen_for_store, takes_list=True),
    Adapter("pymatgen.core", "IMolecule", from_pymatgen_for_store, takes_list=True),
]


def _own(objects: list[AtomicData | Batch]) -> list[AtomicData | Batch]:
    """Zarrpipe's own objects, which take no options."""
    return objects


_HINTS: dict[type, str] = {
    GeneratorType: " (make a list of this generator with list(...), or give it to a sink's write)",
    str: " (zarrpipe.ZarrDataset opens the store at a path)",
    dict: " (zarrpipe.AtomicData(**fields) makes a system of a dictionary)",
    list: " (this one is in a list of lists: join them)",
}

_OWN = Adapter("zarrpipe.data", "FieldTensors", _own, takes_list=True)


def register(kind: type | str, convert: Callable[..., Converted]) -> None:
    """Teach `as_batch`, and with it every sink and writer, another class.

    Parameters
    ----------
    kind
        The class, or its dotted path such as ``"mylib.Frame"``, which is never imported. Classes
        derived from it are taken too; of several that fit, the nearest base class wins, and
        what is registered later replaces what was registered for the same path.
    convert
        Function from one object to a `Batch`, an `AtomicData` or a list of them. Keyword
        arguments of `as_batch` are handed on to it.

    Raises
    ------
    ValueError
        If `kind` is a path without a dot.

    Examples
    --------
    >>> class Frame:
    ...     def __init__(self, xyz):
    ...         self.xyz = xyz
    >>> def from_frame(frame):
    ...     return AtomicData(positions=frame.xyz, atomic_numbers=[2] * len(frame.xyz))
    >>> register(Frame, from_frame)
    >>> as_batch([Frame([[0.0, 0.0, 0.0]]), Frame([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0]])]).num_graphs
    2
    """
    if not isinstance(kind, str | type) or not callable(convert):
        raise ArgumentTypeError(
            f"register({kind!r}, {convert!r}): expected a class or its dotted path, and a function"
        )
    path = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
    package, dot, name = path.rpartition(".")
    if not dot or not package or not name:
        raise ArgumentError(
            f"{path!r} is no dotted path of a class: expected one like 'mylib.Frame'"
        )
    _ADAPTERS.insert(0, Adapter(package, name, convert))


def as_batch(obj: Any, **options: Any) -> Batch:
    """Turn a system, a batch or a list of them, of this or another library, into a batch.

    Parameters
    ----------
    obj
        `Batch`, `AtomicData`, ASE ``Atoms``, PyG ``Data`` or ``Batch``, torch-sim ``SimState``,
        nvalchemi ``AtomicData`` or ``Batch``, MACE's ``AtomicData`` or ``Batch``, pymatgen
        ``Structure`` or ``Molecule``, what was registered, or a list or tuple of any of these. A
        `Batch` is returned as it is.
    **options
        Handed to the adapter: see `from_ase`, `from_pyg`, `from_torch_sim`, `from_mace` and
        `from_pymatgen`.

    Returns
    -------
    Batch
        The systems in order.

    Warns
    -----
    UserWarning
        If ASE's ``Atoms`` have something that looks like a label and that is not taken, or a
        calculator that can give energy or forces and has not computed them, and no `options` say
        what is wanted of ``info`` and ``arrays``.

    Raises
    ------
    TypeError
        If there is no adapter for an object, or its adapter does not know an option.
    FieldError
        If the list is empty or a field does not fit.

    Examples
    --------
    >>> helium = AtomicData(positions=[[0.0, 0.0, 0.0]], atomic_numbers=[2])
    >>> as_batch([helium, helium]).num_graphs
    2
    """
    if isinstance(obj, Batch):
        return obj
    objects = list(obj) if isinstance(obj, list | tuple) else [obj]
    runs = groupby(objects, key=_find)
    return _concatenate([adapter(list(run), **options) for adapter, run in runs])


def has_adapter(obj: Any) -> bool:
    """Whether `as_batch` takes objects of this class."""
    return _adapter_of(obj) is not None


def _adapter_of(obj: Any) -> Adapter | None:
    """Adapter of the nearest class in the object's method resolution order."""
    if isinstance(obj, Batch | AtomicData):
        return _OWN
    for cls in type(obj).__mro__:
        for adapter in _ADAPTERS:
            if adapter.defines(cls):
                return adapter
    return None


def _find(obj: Any) -> Adapter:
    """Adapter of an object, or an error that names those there are."""
    found = _adapter_of(obj)
    if found is not None:
        return found
    known = sorted({f"{adapter.package}.{adapter.name}" for adapter in _ADAPTERS})
    kind = f"{type(obj).__module__}.{type(obj).__qualname__}".removeprefix("builtins.")
    raise ArgumentTypeError(
        f"no adapter for an object of type {kind}: "
        f"expected zarrpipe.Batch, zarrpipe.AtomicData, one of {', '.join(known)}, or a list of "
        f"them{_HINTS.get(type(obj), '')}; teach it another class with "
        "zarrpipe.adapters.register(cls, function)"
    )


def _concatenate(results: Iterable[Converted]) -> Batch:
    parts: list[AtomicData | Batch] = []
    for result in results:
        if isinstance(result, Batch | AtomicData):
            parts.append(result)
        else:
            parts.extend(result)
    if len(parts) == 1 and isinstance(parts[0], Batch):
        return parts[0]
    return Batch.concatenate(parts)
