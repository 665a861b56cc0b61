"""The code of the README and of all pages has the types that the package declares."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in ROOT.glob("docs/**/*.md") if "adr" not in page.parts),
]
CONFIG = """
[mypy]
check_untyped_defs = True
ignore_missing_imports = True
mypy_path = {root}
[mypy-zarrpipe.*]
follow_imports = silent
[mypy-ase.*,lightning.*,mace.*,matgl.*,nequip.*,pandas.*,pymatgen.*,torch_geometric.*,torch_sim.*]
follow_imports = skip
"""
OTHERS = (r'Argument "batch_sampler" to "DataLoader" has incompatible type "GraphBatchSampler"',)
"""Errors that are due to annotations of other packages: torch asks for lists of any kind."""


def code_of(page):
    """The code of a page, each line at the place that it has there."""
    text = page.read_text()
    lines = [""] * (text.count("\n") + 1)
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        for place, line in enumerate(block.group(1).splitlines()):
            lines[first + place] = line
    return "\n".join(lines) + "\n"


def checked(pages, folder):
    """What mypy says of the code of pages, by page and line, without notes."""
    names = {}
    for page in pages:
        code = code_of(page)
        if code.strip():
            name = f"page_{len(names)}.py"
            (folder / name).write_text(code)
            names[name] = page
    (folder / "mypy.ini").write_text(CONFIG.format(root=ROOT))
    options = ["--config-file", "mypy.ini", "--cache-dir", str(ROOT / ".mypy_cache" / "pages")]
    command = [sys.executable, "-m", "mypy", *options, "--no-error-summary", *names]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stderr + ran.stdout
    errors = re.findall(r"^(\w+\.py):(\d+): error: (.*)$", ran.stdout, re.MULTILINE)
    return [
        f"{names[name]}:{line}: {what}"
        for name, line, what in errors
        if not any(re.match(one, what) for one in OTHERS)
    ]


@pytest.mark.slow
def test_code_of_the_pages_has_the_right_types(tmp_path):
    pytest.importorskip("mypy")
    wrong = tmp_path / "wrong.md"
    wrong.write_text(
        "text\n```python\nimport zarrpipe as zp\nzp.ZarrData('a', capacity='b')\n```\n"
    )
    found = checked([*PAGES, wrong], tmp_path)
    (expected,) = (one for one in found if one.startswith(f"{wrong}:4: "))
    assert '"capacity"' in expected
    assert [one for one in found if one != expected] == []
