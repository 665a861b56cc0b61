"""A runner for the code and the commands of a page, in the order in which they stand."""

import importlib.util
import re
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zarrpipe.cli import main

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|console|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ zarrpipe (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
NEEDS = re.compile(r"# needs (\w+)")


def settled(text: str) -> list[str]:
    """Lines of a text without what differs from store to store and from disk to disk."""
    text = re.sub(r"[0-9a-f]{32}", "<generation>", text)
    text = re.sub(r"[\d,]+ bytes", "<bytes>", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [re.sub(r" [\d,]+$", " <bytes>", line) if " - " in line else line for line in lines]


def installed(library: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.util.find_spec(library) is not None


@pytest.fixture
def run_page(tmp_path, monkeypatch, capsys) -> Callable[[str], dict[str, Any]]:
    """Run the blocks of a page in a scratch directory; return the names that they leave.

    A block of Python runs unless its first line says that it needs a library that is not there. If
    the next block is text, it shows what the code prints. A console block has commands of zarrpipe,
    with what they print, or with nothing where that does not matter. A fence with another word
    behind the language (``python notest``) is not run.
    """
    monkeypatch.chdir(tmp_path)

    def run(page: str) -> dict[str, Any]:
        namespace: dict[str, Any] = {"__name__": "page"}
        before = ""
        for place, (kind, block) in enumerate(BLOCK.findall((ROOT / page).read_text())):
            where = f"{page} block {place}"
            if kind == "python":
                needs = NEEDS.match(block)
                if needs is None or installed(needs[1]):
                    capsys.readouterr()
                    exec(compile(block, where, "exec"), namespace)
            elif kind == "text" and before == "python":
                assert capsys.readouterr().out.replace(f"{tmp_path}/", "") == block, where
            for command, shown in COMMAND.findall(block) if kind == "console" else ():
                capsys.readouterr()
                code, printed = main(shlex.split(command)), capsys.readouterr()
                if shown:
                    text = (printed.out + printed.err).replace(f"{tmp_path}/", "")
                    assert settled(text) == settled(shown), command
                assert code == (2 if shown.startswith("zarrpipe: ") else 0), printed.err
            before = kind
        return namespace

    return run
