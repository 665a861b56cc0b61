"""Commands that look after a store: ``check`` and ``adopt``."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zarrpipe.cli.exit_codes import GOOD, UNUSABLE
from zarrpipe.cli.options import Json, Store
from zarrpipe.cli.output import report, show

if TYPE_CHECKING:
    from zarrpipe.store.backend.location import StoreLike


def check(
    store: Store,
    *,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Clear what killed writers left and write metadata anew, after saying what is "
            "done; loses no committed sample.",
        ),
    ] = False,
    drop: Annotated[
        bool,
        typer.Option("--drop", help="With --repair: give up samples that cannot be put right."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Repair without asking.")] = False,
    as_json: Json = False,
) -> int:
    """Look a store through for damage, and put it right.

    Of a parent of parts, each part is looked through. Nothing is written without --repair.
    """
    if drop and not repair:
        raise typer.BadParameter("it needs --repair", param_hint="'--drop'")
    from zarrpipe.store.backend.parts import parts

    places = parts(store)
    if not places:
        facts, code = _check(store, repair=repair, drop=drop, yes=yes, as_json=as_json)
        if facts is not None:
            show(facts, "", as_json=True)
        return code
    found = {
        name: _check(place, repair=repair, drop=drop, yes=yes, as_json=as_json)
        for name, place in places.items()
    }
    if as_json:
        show({"parts": {name: facts for name, (facts, _) in found.items()}}, "", as_json=True)
    return max(code for _, code in found.values())


def _check(
    store: "StoreLike", *, repair: bool, drop: bool, yes: bool, as_json: bool
) -> tuple[dict[str, Any] | None, int]:
    """Check one store, and put it right; what JSON says of it, if that is asked for, and the code.

    The report is printed unless JSON is asked for.
    """
    from zarrpipe.store.check.run import check as checked

    found = checked(store)
    plan = found.plan(drop=drop)
    if not as_json:
        show({}, found, as_json=False)
    if not repair or not plan:
        return (found.to_dict() if as_json else None), found.exit_code
    print("\nto be done:", *(f"  {step}" for step in plan), sep="\n", file=sys.stderr)
    if not yes and not _confirmed():
        return None, UNUSABLE
    repaired = checked(store, repair=True, drop=drop)
    if not as_json:
        show({}, repaired, as_json=False)
    return (repaired.to_dict() if as_json else None), repaired.exit_code


def adopt(store: Store, *, as_json: Json = False) -> int:
    """Take over a store that nvalchemi wrote.

    It is rewritten in its place as a store that a sink of zarrpipe continues: the new one is
    swapped in when it is complete. No writer may have the store open.
    """
    from zarrpipe.store.adopt import adopt as adopted

    count = adopted(store)
    text = f"{store}: {count:,} samples, which ZarrData continues"
    show({"store": store, "samples": count}, text, as_json=as_json)
    return GOOD


def _confirmed() -> bool:
    """Ask whether to go on; where nobody can answer, the answer is no."""
    if not sys.stdin.isatty():
        report("nothing was changed: repeat with --yes to do this")
        return False
    sys.stderr.write("go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() in {"y", "yes"}:
        return True
    report("nothing was changed")
    return False
