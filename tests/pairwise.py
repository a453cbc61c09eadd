"""Of the cases of a test that is marked ``pairwise``, those that `make test` runs."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import pytest

Pair = tuple[tuple[str, int], ...]


def covering(cases: Sequence[dict[str, int]]) -> set[int]:
    """Cases, by their place, of which any two values of two parameters occur together in one, if in any case at all.

    Greedy: the case with most pairs that no other chosen case has. A case gives a number to each parameter's value.
    """
    pairs: list[set[Pair]] = [set(combinations(sorted(case.items()), 2)) for case in cases]
    missing, chosen = set[Pair]().union(*pairs), set[int]()
    while missing:
        best = max(range(len(cases)), key=lambda i: len(pairs[i] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return chosen


def leave_the_others_to_test_slow(items: Sequence[pytest.Item]) -> None:
    """Mark the cases of a test marked ``pairwise`` that `make test` can leave out as slow."""
    tests = defaultdict(list)
    for item in items:
        if item.get_closest_marker("pairwise") is not None:
            tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        values = [case.callspec.params if hasattr(case, "callspec") else {} for case in cases]
        if len(values[0]) < 2:
            raise pytest.UsageError(f"{cases[0].nodeid} is marked pairwise and has no two parameters; drop the mark")
        chosen = covering([{name: id(value) for name, value in case.items()} for case in values])
        for place, case in enumerate(cases):
            if place not in chosen:
                case.add_marker(pytest.mark.slow(reason="each pair of its parameters' values occurs in another case"))
