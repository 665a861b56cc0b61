"""The commands as one typer application, and how their errors end."""

import importlib.metadata
import shlex
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, cast

import typer

from zarrpipe.cli import bench, export, imports, look, maintain, rewrite, watch
from zarrpipe.cli import report as reports
from zarrpipe.cli.exit_codes import MEANINGS, UNUSABLE
from zarrpipe.cli.output import flush, report
from zarrpipe.errors import ZarrPipeError

COMMANDS: tuple[Callable[..., int], ...] = (
    imports.import_,
    export.export,
    look.info,
    look.stats,
    look.head,
    look.show,
    reports.report,
    rewrite.split,
    rewrite.merge,
    rewrite.compact,
    rewrite.copy,
    bench.bench,
    watch.watch,
    maintain.check,
    maintain.adopt,
)
"""Every command, in the order of the help."""

_USAGE_ERROR = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""Base of what typer raises for wrong arguments, which has no public name."""

_INTERRUPTED = 130
_DEBUG = "--debug"


def application(*, rich_help: bool) -> typer.Typer:
    """All commands; the help has colours and boxes if `rich_help`."""
    app = typer.Typer(
        name="zarrpipe",
        help="Stores of atomic systems in Zarr: what is in them, in and out, care.",
        epilog=_exit_codes(),
        rich_markup_mode="rich" if rich_help else None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for command in COMMANDS:
        app.command(command.__name__.rstrip("_"))(command)
    return app


def run(argv: Sequence[str]) -> int:
    """Run a command and return its exit code; an error is one line on standard error."""
    debug, arguments = _without_debug(argv)
    command = typer.main.get_command(application(rich_help=sys.stdout.isatty()))
    try:
        with _short_warnings(shown_whole=debug):
            code = command.main(arguments, prog_name="zarrpipe", standalone_mode=False)
        flush()
    except _USAGE_ERROR as error:
        report(_usage(error))
        raise SystemExit(UNUSABLE) from None
    except Exception as error:  # noqa: BLE001  told in a line, or whole with --debug
        if debug:
            traceback.print_exc()
            return UNUSABLE
        report("; ".join([_line(error, arguments), *getattr(error, "__notes__", ())]))
        return UNUSABLE
    if code == _INTERRUPTED:
        report("interrupted")
        return UNUSABLE
    return int(code or 0)


def _version(asked: bool) -> None:
    """Print the version and end, if it is asked for."""
    if asked:
        typer.echo(f"zarrpipe {importlib.metadata.version('zarrpipe')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
    debug: Annotated[
        bool, typer.Option(_DEBUG, help="Show the traceback of an error; it may stand anywhere.")
    ] = False,
) -> None:
    """Take the options before a command; `run` has taken --debug."""


def _exit_codes() -> str:
    """Table of the exit codes, which the help does not fill anew."""
    lines = [f"{code}  {meaning}" for code, meaning in MEANINGS.items()]
    return "\n".join(["\b", "Exit codes:", *textwrap.indent("\n".join(lines), "  ").splitlines()])


def _without_debug(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether --debug is asked for, and the other arguments."""
    end = [*argv, "--"].index("--")
    rest = [one for one in argv[:end] if one != _DEBUG]
    return len(rest) < len(argv[:end]), [*rest, *argv[end:]]


def _usage(error: Any) -> str:
    """What is wrong with the arguments, the usage, and where more stands, as one line."""
    context, message = error.ctx, " ".join(error.format_message().split())
    if context is None:
        return f"{message} (usage: zarrpipe COMMAND ..., zarrpipe --help says more)"
    usage = " ".join(context.get_usage().split()).replace("Usage: ", "usage: ", 1)
    return f"{message.rstrip('.')} ({usage}; {context.command_path} --help says more)"


def _line(error: Exception, arguments: Sequence[str]) -> str:
    """An error of a command as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, ZarrPipeError | ValueError):
        return text
    if isinstance(error, OSError):
        place = shlex.join(arguments) if error.filename is None else error.filename
        what = error.strerror if type(error).__module__ == "builtins" else None
        return (
            f"{place}: {what or text}: see whether the place is right and can be reached, may be "
            "read or written, and has space left"
        )
    return (
        f"{type(error).__name__}: {text}: this error was not foreseen; repeat the command with "
        f"{_DEBUG} to see where it arose"
    )


@contextmanager
def _short_warnings(*, shown_whole: bool) -> Iterator[None]:
    """Show warnings as lines without the place in the code, unless `shown_whole`."""
    with warnings.catch_warnings():
        if not shown_whole:
            warnings.showwarning = lambda message, *_, **__: report(
                f"warning: {' '.join(str(message).split())}"
            )
        yield
