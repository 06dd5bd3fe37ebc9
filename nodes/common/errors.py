"""One shape for every error message: what was asked, what came, what is allowed, what to do."""

from __future__ import annotations


def message(asked: str, got: object, allowed: str, do: str) -> str:
    """Join the four parts of an error message into two sentences.

    `asked` names the node and the input ("Clip Sampler needs a causal Wan model"), `got` is quoted with `!r` unless it
    is already a sentence, `allowed` names the valid values, `do` tells the user the next step.
    """
    received = got if isinstance(got, str) and " " in got else repr(got)
    return f"{asked}, but got {received}; allowed: {allowed}. {do}"
