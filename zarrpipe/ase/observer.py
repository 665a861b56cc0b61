"""`Observer`: the frames of molecular dynamics or of an optimiser, written into a sink."""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zarrpipe.adapters.ase import Names, check_found, results_of
from zarrpipe.ase.selection import Sink, selection_of
from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.data.system import AtomicData
from zarrpipe.data.validate import check_count
from zarrpipe.errors import ArgumentError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from ase import Atoms

_OF_RUN = ("step", "time", "temperature")
_OF_ATOMS = ("momenta", "velocities")
_USUAL = ("energy", "forces")
"""Results that are missed where a calculator can give them and does not hold them."""


class Observer:
    """Writes the frames of ASE's molecular dynamics or of an optimiser into a sink.

    Each call writes the atoms as they are, with the results that their calculator holds for
    them. Nothing is calculated unless `calculate` is set. Forces are those of the calculator:
    without constraints, which move atoms but are no labels.

    Parameters
    ----------
    sink
        A `ZarrData`, or another object with ``write(batch)``. The observer does not close it.
    atoms
        The ``ase.Atoms`` that move, or the filter (``FrechetCellFilter``, ...) around them.
    dyn, optional
        The dynamics or optimiser, needed for ``step`` and ``time``.
    fields : iterable of str, or mapping of str to str, optional
        Results of the calculator to write, by default those that it holds of energy, forces,
        stress, dipole and charges. Besides any results by ASE's names (a mapping gives the name of
        the field, as ``{"free_energy": "energy"}``): ``"step"``, int64; ``"time"``, fs;
        ``"temperature"``, K; ``"momenta"`` and ``"velocities"``, in ASE's units. Those of the run
        are fields of one number at system level, ``[N, 1]``.
    interval : int
        Write at the first call and at every so-many-th one after it. ``dyn.attach`` has an interval
        of its own: give it to one of the two.
    calculate : bool
        Calculate what is missing of `fields` (of energy and forces by default) before writing.
    info, arrays, dtype
        Entries of ``atoms.info`` and ``atoms.arrays`` that become fields, and the dtype of floats,
        as in `from_ase`.

    Warns
    -----
    UserWarning
        Once, if the calculator does not hold energy, forces, or a result that `fields` names.

    Raises
    ------
    ArgumentError
        If `fields` has a result that the calculator does not calculate, or one of the run that
        `dyn` does not have.
    FieldError
        If an entry of `info` or `arrays` is not there, or does not fit, or two have one name.

    Notes
    -----
    Not carried: constraints, tags and other arrays that are not named, and the state of
    thermostats and optimisers.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> from ase.md.verlet import VelocityVerlet
    >>> from ase.units import fs
    >>> from zarrpipe import ZarrData
    >>> copper = bulk("Cu", cubic=True)
    >>> copper.calc = EMT()
    >>> dyn = VelocityVerlet(copper, timestep=5 * fs)
    >>> with ZarrData({}) as sink:
    ...     dyn.attach(Observer(sink, copper, dyn, fields=["energy", "forces", "time"]), interval=2)
    ...     _ = dyn.run(4)
    ...     [round(time) for time in sink.read().time.flatten().tolist()]
    [0, 10, 20]
    """

    def __init__(
        self,
        sink: Sink,
        atoms: Any,
        dyn: Any = None,
        *,
        fields: Iterable[str] | Names | None = None,
        interval: int = 1,
        calculate: bool = False,
        info: Iterable[str] | Names = (),
        arrays: Iterable[str] | Names = (),
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self._sink, self._dyn = sink, dyn
        self._atoms: Atoms = getattr(atoms, "atoms", atoms)
        self._interval = check_count("interval", interval, 1)
        others = (*_OF_RUN, *_OF_ATOMS)
        self._chosen = selection_of(
            fields, self._atoms.calc, others, info=info, arrays=arrays, dtype=dtype
        )
        check_found("info", self._chosen.info, [self._atoms.info])
        check_found("arrays", self._chosen.arrays, [self._atoms.arrays])
        self._expected = [
            key for key in self._chosen.results if fields is not None or key in _USUAL
        ]
        for name, attribute in (("step", "nsteps"), ("time", "get_time")):
            if name in self._chosen.others and not hasattr(dyn, attribute):
                raise ArgumentError(
                    f"fields has {name!r}, and dyn is {type(dyn).__name__} without {attribute}: "
                    f"give the dynamics as Observer(sink, atoms, dyn), or leave {name!r} out"
                )
        self._calculate, self._warned, self._calls = calculate, False, 0

    def __call__(self) -> None:
        """Write the present frame, unless `interval` leaves this call out.

        Raises
        ------
        ZarrPipeError
            As the sink's ``write``, as when it is full: the run ends, and the frame is not written.
        """
        due = self._calls % self._interval == 0
        self._calls += 1
        if due:
            self._sink.write(Batch.from_data_list([self._frame()]))

    def _frame(self) -> AtomicData:
        """The atoms with what was asked for."""
        atoms, chosen = self._atoms, self._chosen
        if self._calculate:
            for key in self._expected:
                atoms.calc.get_property(key, atoms)
        results = results_of(atoms, chosen.results)
        self._warn_of_missing([key for key in self._expected if chosen.results[key] not in results])
        system = chosen.system(atoms, results)
        for key, name in chosen.others.items():
            level = Level.ATOM if key in _OF_ATOMS else Level.SYSTEM
            system.add_field(name, self._value(key), level)
        return system

    def _value(self, name: str) -> torch.Tensor:
        """Rows of a field of the run or of the atoms."""
        if name == "step":
            return torch.tensor([[self._dyn.nsteps]])
        if name == "time":
            value = self._dyn.get_time() / require("ase.units", "ase").fs
        elif name == "temperature":
            value = self._atoms.get_temperature()
        else:
            found = getattr(self._atoms, f"get_{name}")()
            return torch.from_numpy(np.array(found)).to(self._chosen.dtype)
        return torch.tensor([[value]], dtype=self._chosen.dtype)

    def _warn_of_missing(self, missing: list[str]) -> None:
        if missing and not self._warned:
            self._warned = True
            warnings.warn(
                f"frames are written without {' and '.join(missing)}: the calculator "
                f"({type(self._atoms.calc).__name__}) does not hold that for the present "
                "positions, and an Observer calculates nothing unless calculate=True",
                stacklevel=4,
            )
