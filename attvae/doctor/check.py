"""What one look at the machine has found."""

from collections.abc import Callable
from typing import Literal, NamedTuple

Verdict = Literal["ok", "warning", "problem"]


class Check(NamedTuple):
    """A line of the doctor's table. A problem keeps a run from working; a warning may."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examined(name: str, look: Callable[[], Check]) -> Check:
    """What `look` returns; an error that it raises is a problem of that name."""
    try:
        return look()
    except (ValueError, OSError) as error:
        return Check(name, "problem", str(error))
    except Exception as error:  # a broken installation may raise anything, and the other checks are still worth a look
        return Check(name, "problem", f"{type(error).__name__}: {error}")
