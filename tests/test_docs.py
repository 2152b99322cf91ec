"""README and docs, as far as they can be checked without building the site."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import unet_jax

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert not [t for t in targets if "://" not in t and not (page.parent / t).exists()]


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    assert {page.name for page in (ROOT / "docs").glob("*.md")} == set(
        re.findall(r"\w+\.md", navigation)
    )
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = {line.rpartition(".")[2] for line in reference.splitlines() if line.startswith(":::")}
    assert set(unet_jax.__all__) <= listed


def test_the_readme_fits_on_a_screen():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150


def test_the_examples_of_the_reference_run():
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    attempted = 0
    for module in sorted(set(re.findall(r"^::: (\S+)\.\w+$", reference, re.M))):
        result = doctest.testmod(importlib.import_module(module))
        assert result.failed == 0, module
        attempted += result.attempted
    assert attempted > 20
