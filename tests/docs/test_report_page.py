"""The code of docs/guides/report.md runs, and prints what stands there."""

import re
from pathlib import Path

from zarrpipe.reporting.findings import broken, labels, units
from zarrpipe.reporting.values import chosen, distances, energies, scan, structure_map

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "report.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_page_shows_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (_, code), (_, shown) = BLOCK.findall(PAGE.read_text())
    exec(compile(code, PAGE.name, "exec"), {})
    assert capsys.readouterr().out == shown


def test_the_limits_of_the_page_are_those_of_the_code():
    text = " ".join(PAGE.read_text().split())
    for said in (
        f"nearer than {broken.TOO_CLOSE} of the sum",
        f"a force above {broken.HUGE_FORCE:,.0f} eV/Å",
        f"above {broken.LARGE_FORCE:g} eV/Å",
        f"nearer than {broken.CLOSE} of the sum",
        f"within {distances.CUTOFF:g} Å",
        f"up to {scan.MOST_ATOMS // 10**6} million atoms",
        f"fitted to up to {energies.MOST_FITTED:,}",
        f"up to {structure_map.MOST_MAPPED:,} evenly spread samples",
        f"up to {chosen.MOST_STRUCTURES}, and {chosen.MOST_ATOMS:,} atoms",
        f"stresses above {units.LARGEST_STRESS} eV/Å³",
        f"more than {labels.FAR:g} spreads and {labels.LEAST_OFF} eV/atom",
    ):
        assert said in text, said
