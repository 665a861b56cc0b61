"""Imports point down only, there are no cycles, and optional libraries stay inside functions."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import zarrpipe

ROOT = Path(zarrpipe.__file__).parent
FLOORS = (
    {"errors", "closing", "mutex"},
    {"data"},
    {"adapters"},
    {"store"},
    {"sink"},
    {"epochs", "samples", "splits", "transforms"},
    {"dataset"},
    {"_neighbors", "_ranks"},
    {"samplers", "serving", "sides", "statistics"},
    {"loader"},
    {"_loaders"},
    {"_counts", "callbacks", "datamodule"},
    {"testing", "__init__"},
    {"cli"},
    {"__main__"},
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
OPTIONAL = {
    "ase",
    "fsspec",
    "hypothesis",
    "lightning",
    "mace",
    "matplotlib",
    "numba",
    "nvalchemi",
    "pytest",
    "s3fs",
    "torch_geometric",
    "torch_sim",
    "torchdata",
    "tqdm",
    "vesin",
}
MAY = {
    ("_counts", "lightning"),
    ("callbacks", "lightning"),
    ("datamodule", "lightning"),
    ("store._compiled", "numba"),
}
MODULES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] != "recipes" and "__pycache__" not in path.parts
)


def imports(path: Path, *, inside_functions: bool) -> set[str]:
    """Dotted names of the modules that a file imports, in full."""
    found, open_nodes = set(), [ast.parse(path.read_text())]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["zarrpipe", *path.relative_to(ROOT).parts[:-1]]
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{prefix}.{alias.name}" for alias in node.names)
        functions = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        type_checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if (not functions or inside_functions) and not type_checking:
            open_nodes.extend(ast.iter_child_nodes(node))
    return found


def module_of(name: str) -> str | None:
    """Module of this package that a dotted name of it, or of something in it, belongs to."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] == "zarrpipe":
        place = ROOT.joinpath(*parts[1:])
        if place.with_suffix(".py").exists():
            return ".".join(parts[1:])
        if (place / "__init__.py").exists():
            return ".".join([*parts[1:], "__init__"])
        parts.pop()
    return "__init__" if parts[0] == "zarrpipe" else None


def own_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_every_module_has_a_floor():
    assert {own_name(path).partition(".")[0] for path in MODULES} <= set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=own_name)
def test_imports_point_down(path):
    here = own_name(path).partition(".")[0]
    for name in imports(path, inside_functions=here != "__init__"):
        other = module_of(name)
        if other is None or other == "__init__":
            assert other is None or here in ("testing", "datamodule"), f"{here} imports zarrpipe"
            continue
        top = other.partition(".")[0]
        same_floor = top == here or FLOOR[top] == FLOOR[here]
        assert FLOOR[top] < FLOOR[here] or same_floor, f"{own_name(path)} imports {other}"


def test_no_cycles():
    graph = {
        own_name(path): {
            other
            for name in imports(path, inside_functions=True)
            if (other := module_of(name)) and other != own_name(path)
        }
        for path in MODULES
    }
    graph["__init__"] = set()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", MODULES, ids=own_name)
def test_optional_libraries_are_imported_in_functions(path):
    found = {name.partition(".")[0] for name in imports(path, inside_functions=False)}
    allowed = {library for module, library in MAY if module == own_name(path)}
    assert not (found & OPTIONAL) - allowed
