"""Private names of other libraries: those that are used are listed, and those listed exist."""

import ast
import threading
import warnings
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from zarr.storage import LocalStore, MemoryStore

import zarrpipe
from zarrpipe.compat import PRIVATE_NAMES, PrivateName

ROOT = Path(zarrpipe.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for path in ROOT.rglob("*.py")
}


def pyg_batch():
    data = pytest.importorskip("torch_geometric.data")
    return data.Batch.from_data_list([data.Data(x=torch.zeros(2, 1))])


MAKERS = {
    "lightning.pytorch:LightningModule": LightningModule,
    "torch_geometric.data:Batch": pyg_batch,
    "lightning.pytorch.callbacks:BatchSizeFinder": BatchSizeFinder,
    "lightning.pytorch.loops.fit_loop:_FitLoop": lambda: (
        Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop
    ),
    "threading:RLock": threading.RLock,
    "zarr.storage:LocalStore": lambda: LocalStore("."),
    "zarr.storage:MemoryStore": MemoryStore,
}
"""An instance, where the class itself does not have the name."""


def has_underscore(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


@pytest.mark.filterwarnings("ignore:.*GPU available but not used")
@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda one: f"{one.owner}.{one.name}")
def test_each_exists_in_the_installed_release(private: PrivateName):
    module, _, kind = private.owner.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        owner: object = pytest.importorskip(module)
    if kind:
        owner = getattr(owner, kind)
    owner = MAKERS[private.owner]() if private.owner in MAKERS else owner
    attrgetter(private.name)(owner)


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda one: f"{one.owner}.{one.name}")
def test_each_is_used_where_the_list_says(private: PrivateName):
    last = private.name.rpartition(".")[2]
    user = MODULES[private.user]
    names = {alias.name for node in ast.walk(user) for alias in getattr(node, "names", ())}
    names |= {node.attr for node in ast.walk(user) if isinstance(node, ast.Attribute)}
    names |= {node.value for node in ast.walk(user) if isinstance(node, ast.Constant)}
    assert last in names
    assert private.reason


def private_imports(tree: ast.Module) -> Iterator[str]:
    """Modules and names that are imported from private parts of other packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def is_private(name: str) -> bool:
    public = name.startswith(("zarrpipe.", "__", "_thread."))  # Python documents _thread
    return not public and (has_underscore(name) or ".core." in name)


def test_what_is_imported_from_private_modules_is_listed():
    listed = {f"{one.owner}.{one.name}" for one in PRIVATE_NAMES} | {
        one.owner for one in PRIVATE_NAMES
    }
    found = {
        name for tree in MODULES.values() for name in private_imports(tree) if is_private(name)
    }
    assert found
    assert found <= listed


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Names that a module defines: functions, classes, variables and attributes of self or cls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__slots__" for target in node.targets
        ):
            yield from ast.literal_eval(node.value)


def test_private_attributes_that_no_module_defines_are_listed():
    listed = {part for one in PRIVATE_NAMES for part in one.name.split(".")}
    documented = {"_asdict", "_fields", "_getframe", "_make", "_replace"}  # of Python itself
    ours = {name for tree in MODULES.values() for name in defined_names(tree)}
    used = {
        (module, node.attr)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and has_underscore(node.attr)
    }
    assert {
        (module, name) for module, name in used if name not in listed | documented | ours
    } == set()
