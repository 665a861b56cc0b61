"""Extras: each one that is named is there and installs what it is named for."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
DISTRIBUTIONS = {
    "ase_db_backends": "ase-db-backends",
    "atompack": "atompack-db",
    "fairchem": "fairchem-core",
    "mace": "mace-torch",
    "nvalchemi": "nvalchemi-toolkit",
    "py3Dmol": "py3dmol",
    "torch_geometric": "torch-geometric",
    "torch_sim": "torch-sim-atomistic",
}
"""What pip installs for a module of another name."""


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def installs(extra: str) -> set[str]:
    """Distributions that an extra names, through other extras of ours too."""
    found = set()
    for requirement in EXTRAS[extra]:
        if own := re.fullmatch(r"zarrpipe\[([\w,-]+)\]", requirement):
            found.update(*map(installs, own[1].split(",")))
        else:
            found.add(name_of(requirement))
    return found


def required() -> list[tuple[str, str, str]]:
    """File, module and extra of each call of `require` in the package."""
    found = []
    for path in sorted((ROOT / "zarrpipe").rglob("*.py")):
        tree = ast.parse(path.read_text())
        constants = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "require"
            ):
                module, extra = (
                    argument.value if isinstance(argument, ast.Constant) else constants[argument.id]
                    for argument in node.args
                )
                found.append((path.relative_to(ROOT).as_posix(), module, extra))
    return found


def test_an_extra_installs_the_library_that_it_is_named_for():
    calls = required()
    assert len(calls) > 50
    for path, module, extra in calls:
        top = module.partition(".")[0]
        assert extra in EXTRAS, f"{path}: {module!r} names the extra {extra!r}"
        distribution = DISTRIBUTIONS.get(top, top)
        assert distribution in installs(extra), f"{path}: {extra!r} lacks {distribution!r}"


def test_extras_named_in_text_are_there():
    texts = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / "zarrpipe").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *ROOT.glob("trainers/*.txt"),
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
    ]
    named = re.compile(
        r"""zarrpipe\\?\[([\w,-]+)\\?\]|\.\[([\w,-]+)\]|\bextras?\s(?:'|`+)([\w-]+)['`]"""
    )
    found = set()
    for path in texts:
        if path.name == "CHANGELOG.md":  # it has the names of its time
            continue
        for match in named.finditer(path.read_text()):
            for extra in next(filter(None, match.groups())).split(","):
                assert extra in EXTRAS, f"{path.relative_to(ROOT)}: {match[0]}"
                found.add(extra)
    assert found >= {"import", "train", "s3", "cli", "mace", "nequip", "matgl", "pymatgen"}


@pytest.mark.parametrize("extra", ["import", "train", "report", "s3"])
def test_each_task_has_the_command_line(extra):
    assert installs(extra) >= {"typer", "rich"}


def test_a_library_has_one_bound():
    """The bounds of a library are the same wherever it is named."""
    bounds: dict[str, set[str]] = {}
    for requirement in (one for extra in EXTRAS.values() for one in extra):
        if not requirement.startswith("zarrpipe["):
            bounds.setdefault(name_of(requirement), set()).add(requirement)
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}
