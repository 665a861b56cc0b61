"""A report as one HTML file that needs no network: first what matters, then all else."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from zarrpipe.data.tables import Table
from zarrpipe.formats.write.target import new_target
from zarrpipe.libraries import require
from zarrpipe.reporting.contents import Finding, Report, Severity, Structures
from zarrpipe.reporting.figures import svg
from zarrpipe.reporting.texts import fact_text, symbols, text_of, words
from zarrpipe.reporting.viewer import (
    MAP,
    Script,
    chemiscope_script,
    dataset,
    packed,
    that_fit,
    to_json,
)

_SHOWN_SAMPLES = 12  # sample numbers of a finding before "and more"
_OPEN, _FEW = 3, 8  # findings that are unfolded where there are few
_HINTS = {
    "sample": "number of the sample in a dataset of the store",
    "energy_per_atom": "energy of the label by the number of atoms",
    "energy_off": "energy per atom after the reference energies of the elements, from the median",
    "max_force": "largest norm of the forces on an atom",
    "max_stress": "largest component of the stress",
    "nearest_distance": "shortest distance between two atoms",
    "nearest_ratio": "shortest distance by the sum of the covalent radii; below 0.5 is impossible",
    "density": "mass density of periodic samples",
    "split": "split of the sample, as a ZarrDataModule makes it",
}


@dataclass(frozen=True)
class _Column:
    """A column of the list of structures."""

    name: str
    unit: str
    is_number: bool
    cells: tuple[tuple[str, str], ...]  # text and the value to sort by
    hint: str


def write_page(report: Report, path: str | Path) -> Path:
    """Write a report as one HTML file that works offline.

    The page has the numbers and findings first, then sections with figures and tables, then
    structures that turn in a browser with WebGL. These are drawn by the JavaScript of chemiscope
    (BSD-3-Clause), which the page holds; where chemiscope is not installed, the page says so.

    Parameters
    ----------
    report : Report
        What `zarrpipe.report` returned.
    path : str or Path
        The file. One that is there is replaced when the new one is complete.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    MissingLibraryError
        If jinja2 or matplotlib is not installed.
    """
    text, target = page(report), Path(path)
    if target.exists() and not target.is_file():  # a pipe or a device
        target.write_text(text, encoding="utf-8")
        return target
    with new_target(target.resolve(), (), overwrite=True) as unfinished:  # a link stays one
        unfinished.write_text(text, encoding="utf-8")
    return target


def page(report: Report) -> str:
    """The HTML of a report."""
    jinja2 = require("jinja2", "report")
    folder = files("zarrpipe.reporting") / "template"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "anchor": _anchor,
        "last_part": _last_part,
        "not_shown": _not_shown,
        "row_key": _row_key,
        "svg": svg,
        "words": words,
    }
    structures = None if report.structures is None else that_fit(report.structures)
    script = None if structures is None else chemiscope_script()
    own_script = (folder / "page.js").read_text("utf-8")
    template = environment.from_string((folder / "page.html").read_text("utf-8"))
    text: str = template.render(
        report=report,
        title=_title(report),
        facts=_facts(report),
        letters="AB" if len(report.stores) > 1 else "",
        findings=report.findings,
        section_titles={section.name: section.title for section in report.sections},
        counts=_counts(report.findings),
        open_findings=_OPEN if len(report.findings) <= _FEW else 0,
        shown_samples=_SHOWN_SAMPLES,
        signs={Severity.ERROR: "✕", Severity.WARNING: "!", Severity.NOTE: "i"},
        structures=structures,
        keys=[] if structures is None else _keys(structures),
        columns=() if structures is None else _columns(structures),
        orders={} if structures is None else structures.orders,
        style=(folder / "page.css").read_text("utf-8"),
        own_script=own_script,
        script_hash=base64.b64encode(hashlib.sha256(own_script.encode()).digest()).decode(),
        chemiscope=script,
        **_packed(structures, script),
    )
    return text


def _packed(structures: Structures | None, script: Script | None) -> dict[str, str]:
    if structures is None or script is None:
        return {"viewer_script": "", "viewer_data": ""}
    data = to_json(dataset(structures))
    return {"viewer_script": packed(script.text), "viewer_data": packed(data)}


def _title(report: Report) -> str:
    """Names of the stores, without the folders that they are in."""
    return " and ".join(map(_last_part, report.stores))


def _last_part(store: str) -> str:
    return store.rstrip("/").rpartition("/")[2] or store


def _counts(findings: Sequence[Finding]) -> str:
    """As "2 errors, 1 warning"."""
    counts = {one: sum(finding.severity is one for finding in findings) for one in Severity}
    return ", ".join(f"{n} {one}{'s' * (n > 1)}" for one, n in counts.items() if n)


def _facts(report: Report) -> list[tuple[str, str, list[str]]]:
    """Name, unit and text of each fact, or a text for each of two stores."""
    facts = report.facts
    two = len(report.stores) > 1 and all(isinstance(own, Mapping) for own in facts.values())
    sides = list(facts.values()) if two else [facts]
    found = []
    for name in dict.fromkeys(name for own in sides for name in own):
        words_of, _, unit = words(name).rstrip(")").partition(" (")
        texts = [fact_text(name, own.get(name)) for own in sides]
        found.append((words_of, symbols(unit), texts))
    return found


def _keys(structures: Structures) -> list[str]:
    """Store and number of each structure, as "0:17", by which findings name it."""
    numbers = structures.properties.get("sample", structures.samples.tolist())
    letters = structures.properties.get("store", ["A"] * len(numbers))
    return [f"{'AB'.index(one)}:{number}" for one, number in zip(letters, numbers, strict=True)]


def _not_shown(finding: Finding, keys: Sequence[str], most: int) -> int:
    """How many of the samples that a finding names first are not among the structures."""
    return sum(f"{finding.store}:{one}" not in keys for one in finding.samples[:most])


def _row_key(table: Table, cell: str, letters: str) -> str:
    """Store and number of the sample in a cell, as `_keys`; the title of a table begins with A."""
    return f"{int(bool(letters) and table.title.startswith('B '))}:{cell}"


def _columns(structures: Structures) -> tuple[_Column, ...]:
    properties = {"sample": structures.samples.tolist(), **structures.properties}
    first = ("sample", "store")  # of which the second is there where two stores are compared
    names = [*(name for name in first if name in properties), *properties]
    columns = []
    for name in dict.fromkeys(name for name in names if name not in MAP):
        values = properties[name]
        is_number = all(not isinstance(value, str) for value in values)
        texts = [str(value) if name == "sample" else text_of(value) for value in values]
        keys = [repr(float(value)) if is_number else str(value) for value in values]
        unit = symbols(structures.units.get(name, ""))
        columns.append(
            _Column(
                name, unit, is_number, tuple(zip(texts, keys, strict=True)), _HINTS.get(name, "")
            )
        )
    return tuple(columns)


def _anchor(name: str) -> str:
    """Id of a section in the page."""
    return "section-" + re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()
