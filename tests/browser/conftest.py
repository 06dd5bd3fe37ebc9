"""One editor for each test file, and a picture of it after every test, in artefacts/screenshots (git-ignored)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .budget import GIB, OPEN
from .editor import bundled, opened_editor, screenshot_path


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


@pytest.fixture
def card(page):
    """The card as the page is told it: the machine's own moves when others use it."""
    told = {"name": "a card", "total": 12 * GIB, "free": 10 * GIB, "desktop": 0, "others": 0}
    page.route("**/videomemory/vram", lambda route: route.fulfill(json={"card": told}))
    yield told
    page.unroute("**/videomemory/vram")


@pytest.fixture
def asks(page):
    """What the page asks for plans, as it is sent."""
    sent = []

    def see(request) -> None:
        if request.url.endswith("/videomemory/plan"):
            sent.append(request.post_data_json)

    page.on("request", see)
    yield sent
    page.remove_listener("request", see)


@pytest.fixture
def panel(page):
    """The budget panel of the demo's gate."""
    page.evaluate(OPEN, bundled("demo_toyworld"))
    view = page.locator(".videomemory-budget")
    view.wait_for(state="visible", timeout=30_000)
    return view
