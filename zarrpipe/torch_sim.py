"""What torch-sim computes, written into a sink while it is computed.

`SinkReporter` takes the place of torch-sim's ``TrajectoryReporter`` in its runners, and writes all
systems of a state as one batch.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from zarrpipe.adapters.torch_sim import from_torch_sim, to_torch_sim
from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.data.validate import check_count
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from torch_sim import SimState

    from zarrpipe.ase.selection import Sink

__all__ = ["SinkReporter", "from_torch_sim", "to_torch_sim"]

_LABELS = ("energy", "forces", "stress")
_MOST_SYSTEMS = 1 << 62


@dataclass(frozen=True)
class _Trajectory:
    """What torch-sim's runners ask of the trajectory of one system."""

    last_step: int | None

    @property
    def last_written_step(self) -> int | None:
        """Last step that was written."""
        return self.last_step


class SinkReporter:
    """Trajectory reporter for torch-sim's runners that writes into a sink.

    Give it to ``torch_sim.integrate``, ``optimize`` or ``static`` as ``trajectory_reporter``. The
    systems of a state are written together, one batch for each reported step, with the fields
    ``step`` and ``system_number`` ([N, 1] int64), the place of a system among those that the runner
    was given, whatever batches an autobatcher makes of them. Many steps of few systems are gathered
    by a sink with a buffer: ``ZarrData(store, buffer=1000)``.

    Parameters
    ----------
    sink
        A `ZarrData`, or another object with ``write(batch)``. The reporter does not close it.
    state_frequency : int
        Write each so-many-th step. From torch-sim 0.6 on the first and the last state of a run are
        written as well.
    fields : iterable of str, optional
        Our names of the fields to write besides positions, atomic numbers, cell and pbc. By
        default those that the state has of energy (eV), forces (eV/Angstrom), stress
        (eV/Angstrom^3, tension positive) and velocities of dynamics (in torch-sim's metal units,
        which are those of ASE). ``"stress"``, if it is named and the state of the integrator has
        none, costs one more evaluation of the model for each state that is written.
    properties : mapping of str to function, optional
        Fields of your own at system level: functions of a state that return a row for each system,
        [N] or [N, ...], as ``{"temperature": lambda state: state.calc_temperature()}``.

    Raises
    ------
    ArgumentError
        If `state_frequency` is not positive.

    Notes
    -----
    Not carried: constraints (of which forces in the state bear the marks), thermostats, the state
    of an optimiser, and the metadata, resumption and truncation of torch-sim's own trajectory
    files. Steps count from 1 in each run. Runs with torch-sim 0.3 and 0.6.

    Examples
    --------
    >>> import torch, torch_sim
    >>> from ase.build import bulk
    >>> from torch_sim.models.lennard_jones import LennardJonesModel
    >>> from zarrpipe import ZarrData
    >>> model = LennardJonesModel(sigma=3.4, epsilon=0.01, cutoff=8.0, dtype=torch.float64)
    >>> crystals = [bulk("Ar", a=a, cubic=True) for a in (5.1, 5.2, 5.3)]
    >>> with ZarrData({}) as sink:
    ...     _ = torch_sim.static(crystals, model, trajectory_reporter=SinkReporter(sink))
    ...     sink.read().system_number.flatten().tolist(), sorted(sink.read().keys["atom"])
    ([0, 1, 2], ['atomic_numbers', 'forces', 'positions'])
    """

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Derive from torch-sim's reporter, for which its runners look, when it is needed."""
        base = require("torch_sim.trajectory", "torch-sim").TrajectoryReporter
        if not issubclass(cls, base):
            names = {"__doc__": cls.__doc__, "__module__": cls.__module__}
            cls = type(cls.__name__, (cls, base), names)  # noqa: PLW0642
        made: Self = object.__new__(cls)
        return made

    def __init__(
        self,
        sink: "Sink",
        state_frequency: int = 1,
        *,
        fields: Iterable[str] | None = None,
        properties: Mapping[str, Callable[["SimState"], torch.Tensor]] = MappingProxyType({}),
    ) -> None:
        self.state_frequency = check_count("state_frequency", state_frequency, 1)
        self.prop_calculators: dict[int, dict[str, Callable[..., Any]]] = {}
        self.trajectory_kwargs = {"mode": self.mode}
        self._sink, self._properties = sink, dict(properties)
        self._fields = None if fields is None else frozenset(fields)
        self._systems: list[int] | None = None
        self._last_steps: dict[int, int] = {}

    @property
    def mode(self) -> Literal["w"]:
        """Always "w": a runner begins at step 1, whatever the sink has."""
        return "w"

    @property
    def filenames(self) -> Any:
        """Numbers of the systems in the present batch, in place of the names of their files."""
        return range(_MOST_SYSTEMS) if self._systems is None else self._systems

    @property
    def trajectories(self) -> list[_Trajectory]:
        """Progress of each system of the present batch."""
        systems = self._last_steps if self._systems is None else self._systems
        return [_Trajectory(self._last_steps.get(system)) for system in systems]

    def reopen_trajectories(self, filenames: Iterable[int]) -> None:
        """Note the numbers of the systems of the next states, as a runner gives them."""
        self._systems = [int(number) for number in filenames]

    load_new_trajectories = reopen_trajectories  # its name before torch-sim 0.6

    def report(
        self,
        state: "SimState",
        step: int | list[int],
        model: Any = None,
        *,
        force: bool = False,
    ) -> list[dict[str, torch.Tensor]]:
        """Write the systems whose step is due.

        Parameters
        ----------
        state
            State of all systems of the present batch.
        step
            Step of all systems, or of each.
        model
            The model, needed for a stress that the state does not have.
        force
            Write each system whose last written step is below `step`.

        Returns
        -------
        list of dict of str to torch.Tensor
            For each system the properties that were written, [1, ...].

        Raises
        ------
        ArgumentError
            If the state has another number of systems than the present batch.
        FieldError
            If the state does not have a field, or the model gives no stress.
        ZarrPipeError
            As the sink's ``write``.
        """
        count = int(state.n_systems)
        systems = list(range(count)) if self._systems is None else self._systems
        if len(systems) != count:
            raise ArgumentError(
                f"the state has {count} systems, the present batch of the run has {len(systems)}: "
                "call finish() on a SinkReporter whose run was interrupted, before another run"
            )
        steps = [int(at) for at in step] if isinstance(step, list) else [int(step)] * count
        due = [place for place in range(count) if self._is_due(systems[place], steps[place], force)]
        shown: list[dict[str, torch.Tensor]] = [{} for _ in systems]
        if not due:
            return shown
        batch = self._batch(state, model)
        batch.add_field("step", torch.tensor(steps, device=batch.device)[:, None], Level.SYSTEM)
        numbers = torch.tensor(systems, device=batch.device)[:, None]
        batch.add_field("system_number", numbers, Level.SYSTEM)
        self._sink.write(batch if len(due) == count else batch.index_select(due))
        self._last_steps |= {systems[place]: steps[place] for place in due}
        for place in due:
            shown[place] = {name: batch[name][place : place + 1] for name in self._properties}
        return shown

    def report_final_frame(
        self, index: int, state: "SimState", step: int, model: Any = None
    ) -> None:
        """Write the last state of the system at a place in the present batch, if it is not yet."""
        systems, self._systems = self.filenames, [self.filenames[index]]
        try:
            self.report(state, step, model, force=True)
        finally:
            self._systems = list(systems)

    def _is_due(self, system: int, step: int, force: bool) -> bool:
        if force:
            last = self._last_steps.get(system)
            return last is None or last < step
        return step % self.state_frequency == 0

    def _batch(self, state: "SimState", model: Any) -> Batch:
        """Batch of a state with what was asked for."""
        names = self._names(state, model)
        lacks_stress = "stress" in names and not hasattr(state, "stress")
        batch = from_torch_sim(state, fields=names - {"stress"} if lacks_stress else names)
        if lacks_stress:
            batch.add_field("stress", _computed_stress(state, model))
        for name, function in self._properties.items():
            rows = function(state).detach()
            batch.add_field(name, rows[:, None] if rows.ndim == 1 else rows, Level.SYSTEM)
        return batch

    def _names(self, state: "SimState", model: Any) -> frozenset[str]:
        """Fields to take from a state; what its model does not compute holds NaN there."""
        if self._fields is not None:
            return self._fields
        computed = {name for name in _LABELS if getattr(model, f"compute_{name}", True)}
        found = {name for name in computed if isinstance(getattr(state, name, None), torch.Tensor)}
        return frozenset(found | ({"velocities"} if hasattr(state, "momenta") else set()))

    def finish(self) -> None:
        """End a run: the next one counts its systems and steps anew."""
        self._systems, self._last_steps = None, {}

    close = finish

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()


def _computed_stress(state: "SimState", model: Any) -> torch.Tensor:
    """Stress [N, 3, 3] by one more evaluation of the model."""
    found = model(state).get("stress") if model is not None else None
    if found is None:
        raise FieldError(
            f"fields has 'stress', {type(state).__name__} has none, and "
            f"{'no model was given' if model is None else 'the model computes none'}: make the "
            "model with compute_stress=True, or leave 'stress' out"
        )
    stress: torch.Tensor = found.detach()
    return stress
