"""What is known of speculation before anything is measured: modes, sizes, expected tokens."""

from typing import Literal, get_args

# Where drafted tokens come from: see docs/how-to/speculation.md.
SpeculationMode = Literal["auto", "off", "lookup", "draft"]
SPECULATION_MODES: tuple[SpeculationMode, ...] = get_args(SpeculationMode)

# Tokens of a run that checks drafted ones: the last token and 1 to 15 drafts. Few sizes, so that
# each is soon measured.
SIZES = (2, 3, 4, 6, 8, 12, 16)


def expected_tokens(share: float, drafts: int) -> float:
    """Tokens that a run gives, its own included, if each drafted one is right with this share.

    A draft counts only behind others that were right (arXiv 2211.17192, equation 1).
    """
    return sum(share**number for number in range(drafts + 1))
