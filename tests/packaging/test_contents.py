"""What the wheel and the source distribution hold: all that belongs there, and nothing else."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "conda", "configs", "docs", "recipes", "reliability", "tests", "trainers")
FILES = (
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "constraints-oldest.txt",
    "constraints.txt",
    "pyproject.toml",
)
BUILD = """
import setuptools.build_meta as backend
backend.build_sdist("dist")
backend.build_wheel("dist")
"""


def files(*folders: Path) -> set[str]:
    """Paths of all files below `folders`, relative to the parent of each."""
    return {
        path.relative_to(folder.parent).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources, with both distributions in its folder ``dist``."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 builds zarrpipe")
    source = tmp_path_factory.mktemp("source")
    made = shutil.ignore_patterns("__pycache__", ".*", "*.zarr", "_build")
    for folder in (*FOLDERS, "zarrpipe"):
        shutil.copytree(ROOT / folder, source / folder, ignore=made)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD], cwd=source, check=True, capture_output=True)
    return source


def test_the_wheel_holds_the_package_whole_and_its_licence(source):
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("zarrpipe/py.typed") == b""
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == files(source / "zarrpipe")
    assert {name.partition("/")[2] for name in metadata} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }


def test_the_source_distribution_holds_tests_documents_and_recipes(source):
    (sdist,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {one.name.partition("/")[2] for one in archive.getmembers() if one.isfile()}
    here = files(*(source / folder for folder in (*FOLDERS, "zarrpipe")))
    made = {name for name in members if name.startswith("zarrpipe.egg-info/")}
    assert members - made - {"PKG-INFO", "setup.cfg"} == here | set(FILES)
