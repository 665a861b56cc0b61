"""Imports point down, room by room, without cycles; optional libraries stay in functions."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import zarrpipe

ROOT = Path(zarrpipe.__file__).parent
ROOMS = (
    {"compat", "errors", "libraries", "progress"},
    {"data"},
    {"adapters"},
    {"transforms"},
    {"store.format"},
    {"store.backend"},
    {"store.cache"},
    {"store.read"},
    {"store.query"},
    {"store.statistics"},
    {"store.write"},
    {"store.rewrite"},
    {"store.check"},
    {"store.parts"},
    {"store"},
    {"sink"},
    {"ase", "torch_sim"},
    {"dataset"},
    {"training.epoch"},
    {"training.ranks", "training.workers"},
    {"training.splits"},
    {"training.sampler"},
    {"nodes"},
    {"training"},
    {"ml"},
    {"mace", "nequip", "matgl", "schnetpack", "torchmd_net", "fairchem"},
    {"formats"},
    {"reporting"},
    {"watch"},
    {"testing", "__init__"},
    {"cli"},
    {"__main__"},
)
"""Each imports only from those above it; what has no line of its own belongs to its parent."""

HEIGHT = {name: height for height, names in enumerate(ROOMS) for name in names}
OPTIONAL = {
    "ase",
    "ase_db_backends",
    "atompack",
    "chemiscope",
    "dpdata",
    "fairchem",
    "fsspec",
    "h5py",
    "hydra",
    "hypothesis",
    "jinja2",
    "lightning",
    "mace",
    "matgl",
    "matplotlib",
    "mlcroissant",
    "nequip",
    "numba",
    "nvalchemi",
    "pandas",
    "pymatgen",
    "pyarrow",
    "py3Dmol",
    "pytest",
    "pytorch_lightning",
    "rich",
    "s3fs",
    "schnetpack",
    "torch_geometric",
    "torch_sim",
    "torchdata",
    "torchmdnet",
    "torchmetrics",
    "tqdm",
    "typer",
    "vesin",
}
MAY = {
    ("training.lightning_resume", "lightning"),
    ("training.split_loaders", "lightning"),
    ("training.monitor", "lightning"),
    ("training.data_module", "lightning"),
    ("ml.averaging", "lightning"),
    ("ml.force_field", "lightning"),
    ("ml.predictions", "lightning"),
    ("ml.metrics", "torchmetrics"),
    ("ml.torch_sim", "torch_sim"),
    ("nequip.data_module", "hydra"),
    ("nequip.data_module", "lightning"),
    ("nequip.data_module", "nequip"),
    ("nequip.statistics", "lightning"),
    ("nequip.statistics", "nequip"),
    ("nequip.transforms", "nequip"),
    ("nodes", "torchdata"),
    ("training.loader", "torchdata"),
    ("store.read.kernels", "numba"),
    ("formats.dpdata_plugin", "dpdata"),
    ("schnetpack", "pytorch_lightning"),
}
MODULES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] != "recipes" and "__pycache__" not in path.parts
)


def imports(path: Path, *, at_run_time: bool) -> set[str]:
    """Dotted names of the modules that a file imports, in functions too or when it is imported."""
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
        if not (at_run_time and (functions or type_checking)):
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


def room_of(module: str) -> str:
    """The longest prefix of a dotted name that is a room."""
    parts = module.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in HEIGHT), "")


def test_every_module_has_a_room():
    assert [own_name(path) for path in MODULES if not room_of(own_name(path))] == []


@pytest.mark.parametrize("path", MODULES, ids=own_name)
def test_imports_point_down(path):
    here = own_name(path)
    for name in imports(path, at_run_time=here == "__init__"):
        other = module_of(name)
        if other is None or other == "__init__":
            allowed = room_of(here) in ("testing", "training")
            assert other is None or allowed, f"{here} imports zarrpipe"
            continue
        assert HEIGHT[room_of(other)] <= HEIGHT[room_of(here)], f"{here} imports {other}"


def test_no_cycles():
    graph = {
        own_name(path): {
            other
            for name in imports(path, at_run_time=False)
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
    found = {name.partition(".")[0] for name in imports(path, at_run_time=True)}
    allowed = {library for module, library in MAY if module == own_name(path)}
    if own_name(path).startswith("cli.") and path.stem != "__init__":
        allowed.add("typer")  # `cli.main` says how it is installed before it imports these
    assert not (found & OPTIONAL) - allowed
