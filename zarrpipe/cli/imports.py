"""Commands that bring files into stores: ``import``."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from zarrpipe.cli.exit_codes import FOUND, GOOD
from zarrpipe.cli.options import Json, Store
from zarrpipe.cli.output import report, show

_LABEL = "Key of the files to read it from; several by commas, in order of preference, or none."
Key = Annotated[str | None, typer.Option(metavar="KEY", help=_LABEL)]


def import_(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Files, globs, directories, other stores, or - for the standard input.",
            show_default=False,
        ),
    ],
    store: Store,
    energy: Key = None,
    forces: Key = None,
    stress: Key = None,
    virial: Key = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=KEY",
            help="The same of any field; with a name of your own a key is kept under it. "
            "May be repeated.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Leave a key out. May be repeated.")
    ] = None,
    level: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=LEVEL",
            help="Whether a key has rows of atoms or is of the system, where a format does not "
            "say it: atom or system. May be repeated.",
        ),
    ] = None,
    units: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=UNIT,...",
            help="Units of the files where they are not ASE's: of a label, or of energy, length, "
            "mass or charge, which all labels follow: energy=kcal/mol,stress=GPa. May be repeated.",
        ),
    ] = None,
    stress_sign: Annotated[
        str, typer.Option(help="What is positive in the files: tension (as in ASE) or pressure.")
    ] = "tension",
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Format of all sources; recognised by default. ase:NAME and dpdata:NAME are "
            "formats by the names of these libraries.",
        ),
    ] = None,
    if_exists: Annotated[
        str, typer.Option(help="Of a store that has samples: error, append or replace.")
    ] = "error",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the last import of this store, without doubles."),
    ] = False,
    source_fields: Annotated[
        bool,
        typer.Option("--source-fields", help="Store each sample's file and number in the file."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a frame that cannot be read.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on where labels look as if in other units.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be read as what.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(help="Processes that parse; by default by the size of the files.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Read files of other programs into a store.

    All that ASE and dpdata read, and data sets of MACE, fairchem, metatrain, PyG and atompack.
    What each key of the files becomes is said before anything is written, and refused where it
    is not clear. The exit code is 1 if some frames could not be read.
    """
    named = {"energy": energy, "forces": forces, "stress": stress, "virial": virial}
    labels = {name: _keys(text) for name, text in named.items() if text is not None}
    for text in label or []:
        name, keys = _pair(text, "--label", "FIELD=KEY")
        labels[name] = _keys(keys)
    given = _units(units or [])
    levels = dict(_pair(text, "--level", "KEY=LEVEL") for text in level or [])
    from zarrpipe.formats.read.read_into import read_into

    try:
        found = read_into(
            store,
            sources,
            format=file_format,
            labels=labels,
            units=given,
            stress_sign=stress_sign,  # type: ignore[arg-type]  # read_into checks it
            ignore=ignore or (),
            levels=levels,
            source_fields=source_fields,
            if_exists=if_exists,  # type: ignore[arg-type]  # the sink checks it
            resume=resume,
            strict=strict,
            force=force,
            dry_run=dry_run,
            processes=processes,
            progress=sys.stderr.isatty() and not as_json,
            on_plan=_printer(as_json=as_json),
        )
    except KeyboardInterrupt:
        report("interrupted: --resume goes on where this import stopped")
        raise
    if as_json or not dry_run or found.failures:
        show(found.to_dict(), found, as_json=as_json)
    return FOUND if found.failures else GOOD


def _printer(*, as_json: bool) -> Callable[[Any], None] | None:
    """Function that prints the plan; JSON has it in the report."""
    return None if as_json else lambda plan: show({}, plan, as_json=False)


def _keys(text: str) -> str | list[str] | None:
    """Keys of an option: one, several, or none."""
    keys = [key.strip() for key in text.split(",")]
    return None if keys == ["none"] else keys if len(keys) > 1 else keys[0]


def _units(texts: list[str]) -> dict[str, str]:
    """Units by name, of one or several options; a name that has two is refused."""
    given: dict[str, str] = {}
    for text in filter(None, ",".join(texts).split(",")):
        name, unit = _pair(text, "--units", "NAME=UNIT")
        if given.setdefault(name, unit) != unit:
            both = f"{name} is given as {given[name]!r} and as {unit!r}: give one of them"
            raise typer.BadParameter(both, param_hint="'--units'")
    return given


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise typer.BadParameter(f"{text!r} is not of the form {form}", param_hint=f"'{option}'")
    return name.strip(), value.strip()
