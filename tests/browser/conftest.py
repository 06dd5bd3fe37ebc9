"""One editor for each test file, and a picture of it after every test, in artefacts/screenshots (git-ignored)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .editor import opened_editor, screenshot_path


@pytest.fixture(scope="module")
def page(server) -> Iterator:
    """The editor, shared by the tests of a file."""
    with opened_editor(server) as page:
        yield page


@pytest.fixture(autouse=True)
def screenshot(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the page shows when the test has ended, passed or not."""
    yield
    page = getattr(request.node, "funcargs", {}).get("page")
    if page is not None:
        page.screenshot(path=screenshot_path(request.node.nodeid))
