"""The documentation: generated pages are current, links lead somewhere, commands exist."""

import re
from pathlib import Path

import pytest

from sglang_ext.cli import main
from sglang_ext.cli.docs import compat_page, flags_page
from sglang_ext.config import FLAGS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("patches/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def named(path):
    return str(path.relative_to(ROOT))


def test_pages_are_found():
    assert {"README.md", "docs/architecture.md", "docs/LOG.md"} <= {named(p) for p in PAGES}


@pytest.mark.parametrize(("name", "page"), [("flags", flags_page), ("compat", compat_page)])
def test_generated_page_is_current(name, page):
    written = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert written == page(), "stale; run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            path = page.parent / target.partition("#")[0]
            assert path.exists(), f"{named(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_flags_and_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    known = {flag.name for flag in FLAGS}
    for flag in re.findall(r"--ext-[a-z0-9]+(?:-[a-z0-9]+)*", text):
        assert flag in known, f"{named(page)} names {flag}"
    listed = main.cli.list_commands(None)
    for command in re.findall(r"^(?: {4}|`)sglang-ext ([a-z]+)", text, flags=re.MULTILINE):
        assert command in listed, f"{named(page)} names sglang-ext {command}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_snippets_compile(page):
    text = page.read_text(encoding="utf-8")
    for snippet in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        compile(snippet, named(page), "exec")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.parent.name == "docs" and p.name != "LOG.md"], ids=named
)
def test_page_ends_with_limits_and_verified_on(page):
    headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[-2:] == ["Limits", "Verified on"]


def test_makefile_targets_of_the_docs_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z]+)`", page.read_text(encoding="utf-8")):
            assert target in targets, f"{named(page)} names make {target}"
