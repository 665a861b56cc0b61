"""The code and the commands of each page run, and print what the page shows."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ELSEWHERE = ("docs/guides/trainers/", "docs/guides/nvalchemi.md")
"""Pages that need environments of their own: tests/trainers and tests/interop run them."""

LIBRARIES = ("ase", "torch_geometric", "torch_sim", "dpdata", "mlcroissant", "vesin")
RUN = re.compile(r"^```(?:python|console)\n", re.MULTILINE)
PAGES = [
    page
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    if RUN.search(path.read_text())
    and not (page := path.relative_to(ROOT).as_posix()).startswith(ELSEWHERE)
]


@pytest.fixture(autouse=True)
def libraries():
    for library in LIBRARIES:
        pytest.importorskip(library)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
@pytest.mark.filterwarnings("ignore:chemiscope.show only displays a widget:UserWarning")
@pytest.mark.filterwarnings("ignore:Writing into .traj:UserWarning")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`:UserWarning")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_in_order(run_page, page):
    run_page(page)


def test_links_of_the_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
