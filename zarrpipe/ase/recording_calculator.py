"""`RecordingCalculator`: each label that a calculator computes, written into a sink."""

import atexit
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from zarrpipe.adapters.ase import Names, named_results
from zarrpipe.ase.selection import Selection, Sink, selection_of
from zarrpipe.data.batch import Batch
from zarrpipe.data.system import AtomicData
from zarrpipe.errors import ArgumentTypeError

if TYPE_CHECKING:
    from ase import Atoms


class RecordingCalculator:
    """A calculator of ASE that also writes each label it calculates into a sink.

    It passes everything on to the calculator inside: properties, methods, parameters and errors. A
    structure is written once for each calculation, with the atoms at that moment and all results
    that were asked for; what is only looked up again is not. Where a calculator computes a
    structure's properties one by one, the structure waits for the rest of them until the next one
    is calculated, or until `flush`. An error of the calculator passes through, and what it left
    behind is not written; an error of the sink is raised by the call that calculated, and what was
    to be written is kept for the next one.

    Parameters
    ----------
    calculator
        Any calculator that keeps ``results``, as those do that derive from ASE's ``Calculator``.
    sink
        A `ZarrData`, or another object with ``write(batch)``. It is not closed here.
    fields : iterable of str, or mapping of str to str, optional
        Results to write, by default what is calculated of energy, forces, stress, dipole and
        charges; a mapping gives the name of the field, as ``{"free_energy": "energy"}``.
    info, arrays, dtype
        Entries of ``atoms.info`` and ``atoms.arrays`` that become fields where the atoms have
        them, and the dtype of floats, as in `from_ase`.

    Raises
    ------
    ArgumentTypeError
        If the calculator keeps no results.
    ArgumentError
        If `fields` has a result that the calculator does not calculate.

    Notes
    -----
    Use it as a context manager, or call `flush`: that writes the structure that waits. It is also
    written when the object is collected; the end of the interpreter loses it with a warning, and a
    kill without one. None waits of a calculator that gives all of `fields` at once.

    ASE's few checks for ``isinstance(calc, Calculator)`` fail for this object.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from ase.calculators.emt import EMT
    >>> from ase.optimize import BFGS
    >>> from zarrpipe import ZarrData
    >>> water = molecule("H2O")
    >>> with ZarrData({}) as sink:
    ...     with RecordingCalculator(EMT(), sink, fields=["energy", "forces"]) as water.calc:
    ...         _ = BFGS(water, logfile=None).run(fmax=0.01, steps=3)
    ...     len(sink), sorted(sink.read().keys["system"])
    (4, ['cell', 'energy', 'pbc'])
    """

    __slots__ = ("__weakref__", "_calculator", "_recorder")

    _calculator: Any
    _recorder: "_Recorder"

    def __init__(
        self,
        calculator: Any,
        sink: Sink,
        *,
        fields: Iterable[str] | Names | None = None,
        info: Iterable[str] | Names = (),
        arrays: Iterable[str] | Names = (),
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if not hasattr(calculator, "results"):
            raise ArgumentTypeError(
                f"calculator is a {type(calculator).__name__} without results, expected one that "
                "derives from ase.calculators.calculator.Calculator"
            )
        chosen = selection_of(fields, calculator, (), info=info, arrays=arrays, dtype=dtype)
        recorder = _Recorder(calculator, sink, chosen)
        object.__setattr__(self, "_calculator", calculator)
        object.__setattr__(self, "_recorder", recorder)
        weakref.finalize(self, recorder.flush).atexit = False
        atexit.register(_warn_at_end, weakref.ref(recorder))

    def flush(self) -> None:
        """Write the structure that waits for more of its properties, if there is one."""
        self._recorder.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()

    def __getattr__(self, name: str) -> Any:
        """Look up what the calculator inside has; its methods record what they calculate."""
        if name.startswith("__") or name in type(self).__slots__:
            raise AttributeError(name)
        found = getattr(self._calculator, name)
        if inspect.ismethod(found) and found.__self__ is self._calculator:
            return partial(self._recorder.call, found)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._calculator, name, value)

    def __repr__(self) -> str:
        return f"RecordingCalculator({self._calculator!r}, {self._recorder.sink!r})"


def _warn_at_end(reference: "weakref.ref[_Recorder]") -> None:
    """Say at the end of the interpreter, where no store can be written any more, what is lost."""
    recorder = reference()
    if recorder is not None and recorder.frames:
        warnings.warn(
            f"{len(recorder.frames)} structures that {type(recorder.calculator).__name__} has "
            "calculated were not written: use RecordingCalculator as a context manager, or call "
            "its flush() at the end",
            stacklevel=1,
        )


class _Recorder:
    """Sees from the results of a calculator, after each call, what it has calculated."""

    def __init__(self, calculator: Any, sink: Sink, chosen: Selection) -> None:
        self.calculator, self.sink, self.chosen = calculator, sink, chosen
        self.frames: list[AtomicData] = []  # not yet written
        self.waits = False  # whether the last frame may get more results
        self.results: dict[str, Any] = {}  # of the last frame, which may be written into again
        self.values: dict[str, Any] = {}  # copies of them
        self.atoms: Atoms | None = None  # of the last frame
        self.computed: object = None  # the calculator's own atoms when that was recorded
        self.failed: dict[str, Any] = {}  # results that a failed calculation left behind

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the calculator, and record what it has calculated."""
        try:
            value = method(*args, **kwargs)
        except NotImplementedError:  # a property is missing, and the others are there
            self.record(args)
            raise
        except BaseException:
            self.failed = self.new_results()
            raise
        self.record((*args, *kwargs.values()))
        return value

    def new_results(self) -> dict[str, Any]:
        """Results that are not those of the last frame."""
        results = self.calculator.results.items()
        return {key: value for key, value in results if self.results.get(key) is not value}

    def good_results(self) -> dict[str, Any]:
        """Results that are to be written and are there."""
        found = self.calculator.results
        return {
            key: found[key]
            for key in self.chosen.results
            if found.get(key) is not None and self.failed.get(key) is not found[key]
        }

    def record(self, arguments: Iterable[Any]) -> None:
        """Note a calculation, if there was one, and write the frames that are complete."""
        found, computed = self.good_results(), getattr(self.calculator, "atoms", None)
        known = all(self.results.get(key) is value for key, value in found.items())
        if not found or (known and computed is self.computed):
            return
        given = (one for one in arguments if hasattr(one, "get_positions"))
        atoms: Atoms = next(given) if computed is None else computed
        self.computed = computed
        if not self.repeats(atoms, found):
            results = named_results(found, self.chosen.results)
            if self.waits and self.completes(atoms, found):
                self.frames.pop()
            self.frames.append(self.chosen.system(atoms, results))
            self.atoms = atoms.copy()
            self.values = {key: np.array(value) for key, value in found.items()}
            able = self.calculator.implemented_properties
            self.waits = any(key in able and key not in found for key in self.chosen.results)
        self.results = found
        self.write(len(self.frames) - self.waits)

    def repeats(self, atoms: "Atoms", found: Mapping[str, Any]) -> bool:
        """Whether these are the results of the last frame, calculated again."""
        return found.keys() == self.results.keys() and self.completes(atoms, found)

    def completes(self, atoms: "Atoms", found: Mapping[str, Any]) -> bool:
        """Whether these are the results of the last frame, and perhaps more of them."""
        return (
            self.atoms == atoms
            and found.keys() >= self.results.keys()
            and all(np.array_equal(found[key], value) for key, value in self.values.items())
        )

    def write(self, count: int) -> None:
        """Write the first frames."""
        if count > 0:
            self.sink.write(Batch.from_data_list(self.frames[:count]))
            del self.frames[:count]

    def flush(self) -> None:
        """Write all frames."""
        self.waits = False
        self.write(len(self.frames))
