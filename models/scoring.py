"""What every family gives back for a single snippet, so that a long video can be run in chunks of snippets.

Shapes: M snippets of any videos, K classes, h w cells of a map.
"""

from typing import NamedTuple

from torch import Tensor


class SnippetScores(NamedTuple):
    """What one snippet contributes to its video, whichever other snippets there are."""

    logits: Tensor
    """(M, K) float32."""
    energy: Tensor
    """(M,) float32, what the family weighs the snippet by before it compares it with others; zeros where nothing."""
    maps: Tensor | None = None
    """(M, h, w) float32, spatial attention that sums to 1 over the map; None without spatial attention."""
