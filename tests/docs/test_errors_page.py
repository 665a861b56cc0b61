"""The tables of docs/reference/errors.md are those of the code, and its example runs."""

import inspect
import re
from pathlib import Path

from zarrpipe import errors
from zarrpipe.cli.exit_codes import MEANINGS

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "errors.md").read_text()
PUBLIC = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, Exception)
}


def rows(columns):
    """Rows of the tables with a number of columns."""
    cells = [line.strip("|").split(" | ") for line in TEXT.splitlines() if line.startswith("| ")]
    return [[cell.strip("` ") for cell in row] for row in cells if len(row) == columns]


def test_each_error_is_there_once_with_its_bases():
    (_, *table) = rows(5)
    found = {row[0]: re.sub("`", "", row[1]).split(", ") for row in table}
    assert len(found) == len(table)
    assert found == {
        name: [base.__name__ for base in kind.__bases__] for name, kind in PUBLIC.items()
    }
    assert all(all(row[2:]) for row in table)


def test_each_error_is_in_the_tree_of_the_module():
    listed = re.findall(r"^ +(\w+Error)(?: \((\w+)\))?", errors.__doc__, re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(PUBLIC)
    for name, builtin in listed:
        builtins = [base.__name__ for base in PUBLIC[name].__bases__ if base.__name__ not in PUBLIC]
        if builtin:
            assert [builtin] == builtins


def test_exit_codes_are_those_of_the_help():
    table = {row[0]: row[1] for row in rows(2)}
    assert table == {"code": "meaning"} | {str(code): text for code, text in MEANINGS.items()}


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    exec(compile(code, "errors.md", "exec"), {})
