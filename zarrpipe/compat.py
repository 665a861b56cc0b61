"""Differences between releases of the libraries, and every private name of theirs in use.

zarrpipe runs with zarr 3.1.6 to 3.4, Lightning 2.6, torch-sim 0.3 to 0.6 and nvalchemi 0.2 and 0.3.
A name in `PRIVATE_NAMES` may go in any release; a test looks each one up in what is installed, and
another finds private names that are used and not listed.
"""

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from zarr.core.sync import sync

from zarrpipe.errors import FieldError

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer

__all__ = [
    "CHEMISCOPE_SCRIPT",
    "FIT_LOOP_COUNTS",
    "FIT_LOOP_RESUME",
    "PRIVATE_NAMES",
    "PrivateName",
    "memory_content",
    "nvalchemi_levels",
    "nvalchemi_schema",
    "nvalchemi_system_levels",
    "row_chunks",
    "sync",
    "torch_sim_extras",
    "torch_sim_pbc_is_bool",
]


@dataclass(frozen=True)
class PrivateName:
    """A name that a library does not promise to keep, and why its `user`, a module, needs it.

    `owner` is a module, or ``module:class`` whose instances have the name; `name` may be dotted.
    """

    owner: str
    name: str
    user: str
    reason: str


CHEMISCOPE_SCRIPT = "chemiscope/sphinx/static/chemiscope.min.js"
"""File of the chemiscope package that `reporting.viewer` puts into pages.

The package has it for its extension of Sphinx and does not promise its place; the other builds need
Jupyter or a server. Of the script, pages use what chemiscope.org documents.
"""

_FIT_LOOP = "lightning.pytorch.loops.fit_loop:_FitLoop"
_RESUME = "training.lightning_resume"

FIT_LOOP_COUNTS = tuple(
    PrivateName(_FIT_LOOP, name, _RESUME, reason)
    for name, reason in (
        ("epoch_loop.batch_progress.current.processed", "batches trained on in this epoch"),
        ("epoch_loop.batch_progress.is_last_batch", "whether an epoch is complete"),
        ("epoch_loop.batch_progress.total.ready", "whether a fit continues from a checkpoint"),
    )
)
"""Counters of a Lightning fit loop that a checkpoint needs: how much was trained on."""

FIT_LOOP_RESUME = tuple(
    PrivateName(_FIT_LOOP, name, _RESUME, reason)
    for name, reason in (
        ("epoch_loop._batches_that_stepped", "steps that loggers count, one short after a resume"),
        ("epoch_loop.batch_progress.current.completed", "batches to repeat are subtracted"),
        ("epoch_loop.batch_progress.increment_completed", "completes the interrupted batch"),
        ("epoch_loop.reset_restart_stage", "begins the next epoch as an unresumed run does"),
        ("epoch_loop.restarted_on_train_batch_end", "whether a checkpoint is of a batch's end"),
        ("epoch_loop.restarting", "begins the next epoch as an unresumed run does"),
        ("epoch_loop.val_loop._last_val_dl_reload_epoch", "fetches the validation loader anew"),
        ("epoch_progress.current.completed", "whether the epoch before was completed"),
        ("epoch_progress.current.processed", "whether the epoch before was completed"),
        ("epoch_progress.increment_completed", "completes the epoch before"),
        ("on_iteration_done", "begins the next epoch as an unresumed run does"),
        ("restarted_mid_epoch", "whether the rest of an epoch is left"),
        ("_last_train_dl_reload_epoch", "fetches the training loader anew"),
    )
)
"""Further names that continuing a fit needs, including public ones without documentation."""

PRIVATE_NAMES = (
    PrivateName(
        "lightning.pytorch:LightningModule",
        "_trainer",
        "ml.force_field",
        "whether there is a trainer; `trainer` raises where there is none, as in a loaded module",
    ),
    PrivateName(
        "torch_geometric.data:Batch",
        "_num_graphs",
        "adapters.trainers.matgl",
        "number of graphs of a batch that was not made of a list; TorchMD-Net's is set too",
    ),
    PrivateName(
        "nequip.data",
        "_LONG_FIELDS",
        "adapters.trainers.nequip",
        "which keys NequIP keeps as whole numbers",
    ),
    PrivateName(
        "fairchem.core.datasets.atomic_data",
        "AtomicData",
        "adapters.trainers.fairchem",
        "fairchem has all that is public below fairchem.core",
    ),
    PrivateName(
        "zarr.core.sync",
        "sync",
        "compat",
        "runs a coroutine of a store in zarr's event loop; StorePath has no synchronous methods",
    ),
    PrivateName(
        "_thread",
        "start_new_thread",
        "store.write.threads",
        "Thread.start waits for an Event, which an interrupt can leave locked",
    ),
    PrivateName(
        "threading",
        "_register_atexit",
        "store.write.write_buffer",
        "flushes buffers before executors are shut down; handlers of atexit run after that",
    ),
    PrivateName(
        "_thread:RLock",
        "_is_owned",
        "store.write.exclusive_calls",
        "whether this thread holds a lock; a flag beside it could be left wrong by an interrupt",
    ),
    PrivateName(
        "zarr.storage:MemoryStore",
        "_store_dict",
        "compat",
        "compares and restores all objects at once; a store has only asynchronous access by key",
    ),
    PrivateName(
        "zarr.storage:LocalStore",
        "_check_writable",
        "store.backend.local_store",
        "raises zarr's own error for a store that is read-only",
    ),
    PrivateName(
        "torch.utils.data._utils.collate",
        "default_collate_fn_map",
        "data.batch",
        "makes torch's DataLoader collate our types; torch has no public way to register one",
    ),
    PrivateName(
        "numba.core.cgutils",
        "voidptr_t",
        "store.read.kernels",
        "type of an address in compiled code",
    ),
    PrivateName(
        "numba.core.cgutils",
        "raw_memcpy",
        "store.read.kernels",
        "copies rows between addresses in compiled code",
    ),
    PrivateName(
        "multiprocessing.forkserver",
        "_forkserver._preload_modules",
        "training.workers.pool",
        "adds to the modules to preload; set_forkserver_preload replaces what others set",
    ),
    PrivateName(
        "threading:RLock",
        "_is_owned",
        "store.write.exclusive_calls",
        "whether this thread holds the lock; threading.Condition asks the same",
    ),
    *(
        PrivateName("torch_sim:SimState", name, "adapters.torch_sim", "fields of a state by level")
        for name in ("_atom_attributes", "_system_attributes", "_global_attributes")
    ),
    PrivateName(
        "lightning.pytorch.callbacks:BatchSizeFinder",
        "_batch_arg_name",
        _RESUME,
        "which argument the batch size finder scales",
    ),
    *FIT_LOOP_COUNTS,
    *FIT_LOOP_RESUME,
    PrivateName(
        "nvalchemi.data:Batch",
        "_storage",
        "compat",
        "kinds and parents of levels of a user's own; a batch gives only their names",
    ),
    PrivateName(
        "nvalchemi.data:AtomicData",
        "_level_schema",
        "compat",
        "whether a system was taken from a batch with levels of a user's own",
    ),
)
"""Every name outside of the libraries' public interfaces that zarrpipe uses."""


def memory_content(store: Any) -> MutableMapping[str, "Buffer"]:
    """The dict in which a MemoryStore holds its objects."""
    content: MutableMapping[str, Buffer] = store._store_dict
    return content


def torch_sim_pbc_is_bool(state_class: type[Any]) -> bool:
    """Whether a torch-sim state has one pbc for all directions, as before release 0.4.1."""
    return any(field.name == "pbc" and field.type is bool for field in fields(state_class))


def row_chunks(row_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks that span a row: an extent of 0 gives a chunk of 1, as zarr from 3.2 on has it."""
    return tuple(max(extent, 1) for extent in row_shape)


def nvalchemi_levels(batch: Any) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Definitions of the levels of a user's own in an nvalchemi batch, and the level of each field.

    Releases before 0.3 have no such levels.
    """
    levels = {name: level for level, names in (batch.keys or {}).items() for name in names}
    definitions = {}
    for level, names in getattr(batch, "level_keys", {}).items():
        if level not in ("atoms", "edges", "system"):
            schema = batch._storage.attr_map
            definitions[level] = {"kind": schema.level_kind(level)}
            if definitions[level]["kind"] == "product":
                sides = dict(zip(("left", "right"), schema.product_parents[level], strict=True))
                definitions[level] |= sides
            levels |= dict.fromkeys(names, level)
    return definitions, levels


def nvalchemi_system_levels(data: Any) -> bool:
    """Whether an nvalchemi system was taken from a batch with levels of a user's own."""
    schema = getattr(data, "_level_schema", None)
    return schema is not None and len(schema.level_names) > 3  # atoms, edges, system


def nvalchemi_schema(levels: Iterable[Any], fields: Mapping[str, tuple[Any, Any]]) -> Any:
    """``LevelSchema`` of nvalchemi 0.3 with levels and fields (level, torch dtype) of ours."""
    try:
        from nvalchemi.data.level_storage import LevelSchema  # noqa: PLC0415  optional

        schema = LevelSchema()
        add_product = schema.add_product_level
    except (ImportError, AttributeError) as error:
        raise FieldError(
            f"levels {[str(level) for level in levels]} need nvalchemi 0.3: upgrade it, or leave "
            "their fields out with batch.without(...)"
        ) from error
    for level in levels:
        if level.kind == "product":
            definition = level.definition
            add_product(str(level), left=definition["left"], right=definition["right"])
        else:
            schema.add_level(str(level), segmented=level.kind == "segmented")
    for name, (level, dtype) in fields.items():
        schema.set(name, str(level), dtype=dtype, is_segmented=level.kind != "uniform")
    return schema


def torch_sim_extras(state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Undeclared fields of atoms and of systems, which states have from torch-sim 0.6 on."""
    return getattr(state, "_atom_extras", {}), getattr(state, "_system_extras", {})
