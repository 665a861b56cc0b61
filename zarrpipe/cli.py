"""The command line: ``zarrpipe check STORE`` and ``zarrpipe adopt STORE``.

Exit codes: 0 where all is good, 1 where something is damaged, 2 where nothing could be done.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from zarrpipe.errors import ZarrPipeError
from zarrpipe.store.adopt import adopt
from zarrpipe.store.check.report import Report
from zarrpipe.store.check.run import check

UNUSABLE = 2
"""Exit code where the arguments are wrong, the store cannot be opened, or a repair was refused."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command with `argv`, by default the arguments of the process; return the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (ZarrPipeError, OSError, ValueError) as error:
        print(f"zarrpipe: {' '.join(str(error).split())}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("zarrpipe: interrupted", file=sys.stderr)
        return UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zarrpipe", description="Stores of atomic systems in Zarr.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_check(commands)
    _add_adopt(commands)
    return parser


def _add_adopt(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "adopt",
        help="make a store that nvalchemi wrote one that a sink of zarrpipe continues",
        description="Rewrite a store that nvalchemi wrote as one of zarrpipe, in its place. The "
        "new one is swapped in when it is complete. No writer may have the store open.",
        epilog="Exit code: 0 if a sink can continue the store, 2 if it was left as it is.",
        allow_abbrev=False,
    )
    command.add_argument("store", metavar="STORE", help="path of the store")
    command.set_defaults(run=_adopt)


def _adopt(arguments: argparse.Namespace) -> int:
    count = adopt(arguments.store)
    print(f"{arguments.store}: {count:,} samples, which ZarrData continues")
    return 0


def _add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "check",
        help="look a store through for damage, and put it right",
        description="Look a store through for damage. Nothing is written without --repair.",
        epilog="Exit code: 0 without errors, 1 with errors, 2 if the store cannot be opened, "
        "the arguments are wrong, or a repair was not confirmed.",
        allow_abbrev=False,
    )
    command.add_argument("store", metavar="STORE", help="path or URL of the store")
    command.add_argument(
        "--repair",
        action="store_true",
        help="clear what killed writers left and write metadata anew, after saying what is done; "
        "loses no committed sample",
    )
    command.add_argument(
        "--drop",
        action="store_true",
        help="with --repair: give up samples that cannot be put right",
    )
    command.add_argument("--yes", action="store_true", help="repair without asking")
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    command.set_defaults(run=_check, fail=command.error)


def _check(arguments: argparse.Namespace) -> int:
    if arguments.drop and not arguments.repair:
        arguments.fail("--drop needs --repair")
    report = check(arguments.store)
    plan = report.plan(drop=arguments.drop)
    if not arguments.repair or not plan:
        _show(report, as_json=arguments.json)
        return report.exit_code
    if not arguments.json:
        print(report)
    print("\nto be done:", *(f"  {step}" for step in plan), sep="\n", file=sys.stderr)
    if not arguments.yes and not _confirmed():
        return UNUSABLE
    repaired = check(arguments.store, repair=True, drop=arguments.drop)
    _show(repaired, as_json=arguments.json)
    return repaired.exit_code


def _show(report: Report, *, as_json: bool) -> None:
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)


def _confirmed() -> bool:
    """Ask whether to go on; where nobody can answer, the answer is no."""
    if not sys.stdin.isatty():
        print("zarrpipe: nothing was changed: repeat with --yes to do this", file=sys.stderr)
        return False
    sys.stderr.write("go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() in {"y", "yes"}:
        return True
    print("zarrpipe: nothing was changed", file=sys.stderr)
    return False
