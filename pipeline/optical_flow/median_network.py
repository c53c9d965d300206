"""The median of 5x5 values by comparators, each of which puts the lesser of two wires first.

A comparator is a minimum and a maximum, so that all pixels, or a vector of them, are sorted at once without a branch.
"""

from functools import cache

SORT_5 = ((0, 1), (3, 4), (2, 4), (2, 3), (1, 4), (0, 3), (0, 2), (1, 3), (1, 2))
"""Comparators that sort five values: those of a column, once for the five windows that share it."""

# Found by random search from a network that sorts the rows and selects; its test tries all inputs.
# fmt: off
MEDIAN_OF_SORTED_COLUMNS = (
    (21, 20), (10, 11), (15, 16), (18, 17), (10, 18), (5, 6), (12, 13), (19, 20), (6, 12), (3, 7), (13, 14), (6, 9),
    (19, 18), (21, 14), (16, 17), (12, 18), (4, 1), (11, 13), (22, 15), (7, 19), (23, 22), (23, 9), (4, 5), (16, 19),
    (15, 22), (18, 13), (10, 11), (1, 8), (3, 11), (15, 18), (9, 16), (2, 23), (5, 7), (1, 0), (21, 12), (8, 23),
    (0, 8), (8, 7), (15, 23), (11, 7), (15, 21), (24, 23), (9, 8), (7, 15), (12, 24), (16, 21), (8, 16), (7, 11),
    (19, 16), (12, 21), (11, 8), (15, 19), (12, 8), (8, 15), (8, 12),
)
# fmt: on
"""Comparators after which wire 12 has the median, where wire 5 r + c has the r-th smallest of column c."""


@cache
def live_comparators() -> tuple[tuple[int, int, bool, bool], ...]:
    """(low, high, low is used later, high is used later) for each comparator, where wire 12 is used in the end."""
    used, comparators = {12}, []
    for low, high in reversed(MEDIAN_OF_SORTED_COLUMNS):
        comparators.append((low, high, low in used, high in used))
        used |= {low, high}
    return tuple(reversed(comparators))
