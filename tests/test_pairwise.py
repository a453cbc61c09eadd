from itertools import combinations, product
from types import SimpleNamespace

import pytest

from tests.pairwise import covering, leave_the_others_to_test_slow


@pytest.mark.parametrize("sizes", [(2, 3), (4, 3, 2), (6, 7, 3, 2), (3, 3, 3, 3, 2)], ids=str)
def test_any_two_values_of_two_parameters_meet(sizes):
    cases = [dict(zip("abcde", numbers, strict=False)) for numbers in product(*map(range, sizes))]
    chosen = [cases[i] for i in covering(cases)]
    for (one, first), (other, second) in combinations(zip("abcde", sizes, strict=False), 2):
        assert {(case[one], case[other]) for case in chosen} == set(product(range(first), range(second)))
    largest, second = sorted(sizes)[:-3:-1]
    assert largest * second <= len(chosen) <= 1.5 * largest * second


def test_pairs_that_are_in_no_case_are_not_looked_for():
    assert covering([{"a": 0, "b": 0}, {"a": 1, "b": 1}]) == {0, 1}
    assert covering([]) == set()


@pytest.mark.parametrize("params", [{}, {"a": 1}])
def test_a_test_without_pairs_would_not_run(params):
    case = SimpleNamespace(
        nodeid="test_x", get_closest_marker=lambda name: pytest.mark.pairwise, callspec=SimpleNamespace(params=params)
    )
    with pytest.raises(pytest.UsageError, match="test_x is marked pairwise and has no two parameters; drop the mark"):
        leave_the_others_to_test_slow([case, case])
