"""The code of the README and of the page on data runs, and says what it says it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(name: str) -> list[str]:
    return BLOCK.findall((ROOT / name).read_text())


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`:UserWarning")
@pytest.mark.parametrize("page", ["README.md", "docs/guides/data.md"])
def test_code_of_a_page_runs_in_order(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    assert found, f"{page} has no python block"
    namespace: dict[str, object] = {"__name__": "page"}
    for place, block in enumerate(found):
        exec(compile(block, f"{page} block {place}", "exec"), namespace)


def test_links_of_the_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
