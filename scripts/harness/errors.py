"""The one error that the entry points turn into a sentence and exit code 1."""

from __future__ import annotations

import errno


class CannotContinue(Exception):
    """Something outside our code stands in the way; the text is one sentence for the user, with what to do."""


def sentence_for_os_error(error: OSError) -> str:
    """Say a full disk, a missing permission or any other operating system error in one sentence."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):  # Windows has no EDQUOT
        return f"The disk is full{where}: free some space and run the same command again."
    if isinstance(error, PermissionError):
        return f"No permission to write{where}: clone the repository, or point --out, to a folder that you own."
    return f"The operating system refused: {error}. Nothing is left running; run the same command again."
