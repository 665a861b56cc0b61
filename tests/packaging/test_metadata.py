"""What is said of a release in several files is the same in all: version, dependencies, licence."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
RECIPE = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
CONDA_NAMES = {"torch": "pytorch"}
"""Names on conda-forge of what has another name on PyPI."""


def bounds(requirements: list[str], names: dict[str, str]) -> dict[str, frozenset[str]]:
    """Bounds of requirements by the name of the library."""
    found = {}
    for requirement in requirements:
        name, bound = re.fullmatch(r"([\w-]+) ?(.*)", requirement).groups()
        found[names.get(name, name)] = frozenset(bound.split(","))
    return found


def test_the_recipe_of_conda_needs_what_the_wheel_and_its_command_line_need():
    requirements = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cli"]
    recipe = bounds(RECIPE["requirements"]["run"], {})
    assert recipe.pop("python") == {">=${{ python_min }}"}
    assert recipe == bounds(requirements, CONDA_NAMES)
    assert f">={RECIPE['context']['python_min']}" == PROJECT["requires-python"]


def test_the_recipe_of_conda_builds_what_pyproject_says():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    host = bounds(RECIPE["requirements"]["host"][1:], {})
    assert host == {"pip": {""}} | bounds(build["requires"], {})
    (script,) = RECIPE["build"]["python"]["entry_points"]
    assert script == f"zarrpipe = {PROJECT['scripts']['zarrpipe']}"
    assert RECIPE["about"]["license"] == PROJECT["license"]
    assert RECIPE["about"]["summary"] == PROJECT["description"]


@pytest.mark.parametrize("version", [RECIPE["context"]["version"], str(CITATION["version"])])
def test_one_version(version):
    assert version == PROJECT["version"]


def test_the_citation_says_what_pyproject_says():
    assert CITATION["title"] == PROJECT["name"]
    assert CITATION["abstract"] == PROJECT["description"]
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["keywords"] == PROJECT["keywords"]
    assert [one["name"] for one in CITATION["authors"]] == [
        one["name"] for one in PROJECT["authors"]
    ]


def test_the_releases_of_python_are_those_of_the_policy():
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    page = (ROOT / "CONTRIBUTING.md").read_text()
    first, last = re.search(r"^\| Python \| (3\.\d+) to (3\.\d+) \|", page, re.MULTILINE).groups()
    assert (named[0], named[-1]) == (first, last)
    assert PROJECT["requires-python"] == f">={first}"
