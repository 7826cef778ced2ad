"""The documentation site is built without a warning: no dead link, no malformed docstring."""

import os
import re
import subprocess
import sys

import pytest

import efficientad_jax
from tests.helpers.command import REPOSITORY


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    site = tmp_path / "site"
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    text = (site / "api/index.html").read_text()
    exported = {
        f"{getattr(efficientad_jax, name).__module__}.{name}" for name in efficientad_jax.__all__
    }
    assert "efficientad_jax.detection.detector.Detector" in exported
    assert {name for name in exported if f'id="{name}"' not in text} == set()


def test_every_page_is_in_the_navigation():
    pages = {path.name for path in (REPOSITORY / "docs").glob("*.md")}
    listed = set(re.findall(r": (\w+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.M))
    assert listed == pages
