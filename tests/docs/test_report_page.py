"""The limits in docs/guides/report.md are those of the code."""

from pathlib import Path

from zarrpipe.reporting.findings import broken, forces, labels, stresses
from zarrpipe.reporting.values import chosen, distances, energies, scan, structure_map

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "report.md"


def test_the_limits_of_the_page_are_those_of_the_code():
    text = " ".join(PAGE.read_text().split())
    for said in (
        f"nearer than {broken.TOO_CLOSE} of the sum",
        f"a force above {broken.HUGE_FORCE:,.0f} eV/Å",
        f"above {broken.LARGE_FORCE:g} eV/Å",
        f"at least {forces.LEAST_LIKE} samples",
        f"more than {forces.GAP:g} spreads",
        f"nearer than {broken.CLOSE} of the sum",
        f"within {distances.CUTOFF:g} Å",
        f"up to {scan.MOST_ATOMS // 10**6} million atoms",
        f"and {scan.MOST_SAMPLES // 10**6} million samples",
        f"those of fewer than {scan.WIDE} numbers",
        f"fitted to up to {energies.MOST_FITTED:,}",
        f"up to {structure_map.MOST_MAPPED:,} evenly spread samples",
        f"up to {chosen.MOST_STRUCTURES}, and {chosen.MOST_ATOMS:,} atoms",
        f"stresses above {stresses.LARGEST_STRESS} eV/Å³",
        f"more than {labels.FAR:g} spreads and {labels.LEAST_OFF} eV/atom",
    ):
        assert said in text, said
