"""How Sphinx makes the site: ``make docs`` writes it to build/docs."""

import importlib.metadata
import importlib.util
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

REPOSITORY = _PROJECT.get("urls", {}).get("Repository", "").rstrip("/")
"""Where links to files outside docs/ lead; without one they are shown as text."""

FROM_ROOT = {
    "project/architecture": "ARCHITECTURE.md",
    "project/changelog": "CHANGELOG.md",
    "project/contributing": "CONTRIBUTING.md",
}
"""Pages of the site whose text is a file of the repository's root."""

project = "zarrpipe"
author = "the zarrpipe developers"
version = release = importlib.metadata.version("zarrpipe")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["diagrams/*.py"]

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

highlight_language = "none"  # of a fence that names none
default_role = "py:obj"
smartquotes = False  # options of commands keep their two hyphens
nitpicky = True
# Types of other libraries are not looked up, so that the site builds without a network.
nitpick_ignore_regex = [("py:.*", r"(?!zarrpipe\b).*")]
# Types of arguments and results that a caller never names.
nitpick_ignore = [
    ("py:class", f"zarrpipe.{name}")
    for name in (
        "adapters.nvalchemi_interfaces.GatheredSamples",
        "adapters.nvalchemi_interfaces.Sink",
        "ase.selection.Sink",
        "data.fields.Kind",
        "data.schema.Field",
        "data.tables.Table",
        "dataset.blocks.Blocks",
        "formats.read.frames.Entry",
        "formats.read.import_plan.ImportPlan",
        "reporting.contents.Kind",
        "reporting.contents.Severity",
        "store.check.report.Severity",
        "store.parts.sink_recipe.Sink",
        "store.statistics.sums.LabelSums",
        "torch_sim._Trajectory",
        "training.epoch.batch_plan.Plan",
        "training.flow.Flow",
        "training.throughput.Spread",
        "training.workers.pool.Workers",
    )
]
python_display_short_literal_types = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "inherited-members": "object"}
autodoc_inherit_docstrings = False
autodoc_type_aliases = {name: name for name in ("ArrayLike", "Index", "SourceLike", "StoreLike")}
autodoc_mock_imports = [
    name
    for name in (
        "fairchem",
        "hydra",
        "matgl",
        "nequip",
        "pymatgen",
        "schnetpack",
        "torch_sim",
        "torchmdnet",
    )
    if importlib.util.find_spec(name) is None
]
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"zarrpipe {release}"
html_theme_options = {"source_repository": REPOSITORY} if REPOSITORY else {}
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_copy_empty_lines = False

linkcheck_anchors = False
linkcheck_ignore = [r"http://127\.0\.0\.1.*", r"http://localhost.*"]

_ALIAS = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")
_LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill in a page that is a file of the root, and turn links that leave docs/ around."""
    place = DOCS / docname
    if name := FROM_ROOT.get(docname):
        place = ROOT / name
        app.env.note_dependency(str(place))
        source[0] = place.read_text()

    def turned(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = Path(os.path.normpath(place.parent / target))
        if path.is_relative_to(DOCS) and (path / "index.md").exists():
            path /= "index.md"
        if "://" in target or not path.is_relative_to(ROOT) or not path.exists():
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        pages = {file: page for page, file in FROM_ROOT.items()}
        if name in pages or (path.suffix == ".md" and path.is_relative_to(DOCS)):
            page = DOCS / f"{pages[name]}.md" if name in pages else path
            return f"[{text}]({os.path.relpath(page, (DOCS / docname).parent)}{anchor})"
        if REPOSITORY:
            return f"[{text}]({REPOSITORY}/blob/main/{name}{anchor})"
        return text if "`" in text else f"`{text}`" if "/" in text else f"{text} (`{name}`)"

    source[0] = _LINK.sub(turned, source[0])


def skip_foreign(app: Sphinx, kind: str, name: str, member: Any, *_: Any) -> bool | None:
    """Leave out what a class inherits from other libraries."""
    member = getattr(member, "fget", member)
    home = getattr(member, "__module__", None) or "zarrpipe"
    return None if home.partition(".")[0] == "zarrpipe" else True


def short_aliases(*facts: Any) -> tuple[str | None, str | None]:
    """Write the name of an alias where autodoc writes how it refers to it."""
    signature, result = facts[-2:]
    return _ALIAS.sub(r"\1", signature) if signature else signature, result


def resolve_short(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element
) -> Element | None:
    """Find a public name that a docstring writes without its module."""
    for module in ("", "errors.", "ml.", "transforms.", "adapters.", "nodes."):
        target = f"zarrpipe.{module}{node['reftarget']}"
        if target in env.domains.python_domain.objects:
            return env.domains.python_domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", target, node, text
            )
    return None


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", read_source)
    app.connect("missing-reference", resolve_short)
    app.connect("autodoc-process-signature", short_aliases)
    app.connect("autodoc-skip-member", skip_foreign)
