"""What a clip's test breaks off stays with that test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_user_folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished chunks of a clip that broke off would be taken up by the next test of the same clip."""
    if request.node.get_closest_marker("comfy"):
        import folder_paths

        monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
