"""What a long loop may tell the outside: how far it is, one line of text, and a question: shall I stop?

Logic modules take a `Progress` and never import ComfyUI; `compat.node_progress` binds one to a running node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _nothing(*_args: object) -> None:
    return None


@dataclass(frozen=True)
class Progress:
    """Three callbacks, each optional.

    update(done, total): steps finished out of all steps of this node.
    say(text): one line shown under the node.
    check_cancel(): raises ComfyUI's interrupt exception when the user pressed Cancel; call it in every loop and never
    swallow what it raises.
    """

    update: Callable[[int, int], None] = _nothing
    say: Callable[[str], None] = _nothing
    check_cancel: Callable[[], None] = _nothing


SILENT = Progress()
