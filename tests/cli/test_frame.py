"""The frame of the command line: what is imported, how errors end, pipes, completion."""

import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import warnings

import pytest
import zarr

import zarrpipe as zp
from zarrpipe.cli import app, main
from zarrpipe.cli.exit_codes import MEANINGS
from zarrpipe.testing import numbered_batch

HEAVY = {"torch", "zarr", "numpy", "numba", "lightning", "pandas"}


@pytest.fixture
def store(tmp_path):
    with zp.ZarrData(tmp_path / "run") as sink:
        sink.write(numbered_batch(range(20)))
    return tmp_path / "run"


def zarrpipe(*arguments, **options):
    command = [sys.executable, "-m", "zarrpipe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "--help"], ["--version"], ["--show-completion"], ["chek"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import json, sys\n"
        "from zarrpipe.cli import main\n"
        "try:\n"
        f"    main({arguments})\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(shown.stdout.splitlines()[-1]))
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_help_names_each_command_and_exit_code(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in app.COMMANDS:
        assert f"\n  {command.__name__.rstrip('_')} " in shown
    for code, meaning in MEANINGS.items():
        assert f"    {code}  {meaning}" in shown
    assert "╭" not in shown
    assert "\x1b" not in shown


def test_each_command_has_a_help_and_json(capsys):
    for command in app.COMMANDS:
        assert main([command.__name__.rstrip("_"), "-h"]) == 0
        shown = capsys.readouterr().out
        assert "--json" in shown
        assert command.__doc__.splitlines()[0] in " ".join(shown.split())


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"zarrpipe {importlib.metadata.version('zarrpipe')}\n"


def test_without_typer(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["--help"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("install them with pip install 'zarrpipe[cli]'\n")
    assert shown.err.count("\n") == 1


def test_wrong_arguments_are_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check"])
    assert ended.value.code == 2
    said = capsys.readouterr().err.replace("{STORE}", "STORE")  # newer releases have braces
    assert said == (
        "zarrpipe: Missing argument 'STORE' (usage: zarrpipe check [OPTIONS] STORE; "
        "zarrpipe check --help says more)\n"
    )


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path, capsys):
    missing = str(tmp_path / "nothing")
    assert main(["check", missing]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for arguments in (["--debug", "check", missing], ["check", missing, "--debug"]):
        assert main(arguments) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("Traceback (most recent call last):")
        assert "StoreNotFoundError: there is no Zarr store" in shown
    assert main(["check", "--", "--debug"]) == 2  # the name of a store


def test_errors_that_were_not_foreseen_are_one_line(monkeypatch, capsys):
    def broken(name: str) -> int:
        """Fail."""
        raise KeyError(name)

    monkeypatch.setattr(app, "COMMANDS", (*app.COMMANDS, broken))
    assert main(["broken", "lost"]) == 2
    assert capsys.readouterr().err == (
        "zarrpipe: KeyError: 'lost': this error was not foreseen; repeat the command with --debug "
        "to see where it arose\n"
    )


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted() -> int:
        """Stop."""
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "COMMANDS", (*app.COMMANDS, interrupted))
    assert main(["interrupted"]) == 2
    assert capsys.readouterr().err == "zarrpipe: interrupted\n"
    monkeypatch.setattr(app, "run", lambda argv: interrupted())
    assert main(["check"]) == 2
    assert capsys.readouterr().err == "zarrpipe: interrupted\n"


def test_warnings_are_lines(monkeypatch, capsys):
    def warning() -> int:
        """Warn."""
        warnings.warn("of two\nlines", stacklevel=1)
        return 0

    monkeypatch.setattr(app, "COMMANDS", (*app.COMMANDS, warning))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["warning"]) == 0
        assert capsys.readouterr().err == "zarrpipe: warning: of two lines\n"
    with pytest.warns(UserWarning, match="lines"):
        assert main(["warning", "--debug"]) == 0


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_reader_that_leaves_is_no_error(store, damaged, buffered):
    """The pipe is closed before anything is printed; the exit code is that of the report."""
    if damaged:
        (store / "core" / "forces" / "c" / "0" / "0").unlink()
    command = [sys.executable, "-m", "zarrpipe", "check", str(store)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait() == int(damaged)
    assert said == ""


@pytest.fixture
def drawn(monkeypatch):
    """Runs a command on a terminal of some columns, and gives what it shows there."""

    def run(*arguments, columns=80):
        terminal = io.StringIO()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(columns))
            patch.setattr(terminal, "isatty", lambda: True)
            patch.setattr(sys, "stdout", terminal)
            assert main([*map(str, arguments)]) == 0
        return terminal.getvalue()

    return run


def test_help_on_a_terminal_has_boxes(drawn):
    assert "╭─" in drawn("--help")


@pytest.mark.parametrize("columns", [100, 45])
def test_tables_on_a_terminal_are_drawn_and_lose_nothing(store, drawn, columns):
    shown = drawn("head", store, "-n", 2, columns=columns)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert lines[0].strip() == "2 of 20 samples"
    assert any("────" in line for line in lines)
    assert max(map(len, lines)) <= columns
    assert "…" not in "".join(lines)
    if columns == 100:
        assert lines[2].split()[-1] == "(eV/Angstrom)"  # below its name
        assert [line.split()[0] for line in lines[-2:]] == ["0", "1"]


def test_text_on_a_terminal_is_as_it_is(store, drawn):
    """A report has brackets and long lines, which are neither markup nor to be cut."""
    zarr.open_array(store / "core" / "forces", mode="r+")[0] = float("nan")
    assert "[not-finite]" in str(zp.check(store))
    assert drawn("check", store) == f"{zp.check(store)}\n"


def test_json_on_a_terminal_is_json(store, drawn):
    assert json.loads(drawn("info", store, "--json"))["samples"] == 20


@pytest.mark.parametrize(("word", "found"), [("ch", ["check"]), ("ad", ["adopt"])])
def test_completion(word, found):
    words = {"COMP_WORDS": f"zarrpipe {word}", "COMP_CWORD": "1"}
    shell = {"_ZARRPIPE_COMPLETE": "complete_bash", **words}
    shown = zarrpipe(env={**os.environ, **shell})
    assert (shown.stdout.split(), shown.stderr) == (found, "")
