"""Times as text."""

import math


def duration(seconds: float) -> str:
    """A time as text: `40 s`, `12 min`, `3.5 h`, `9 days`."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 72 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"
