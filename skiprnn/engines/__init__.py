"""The engines, which compute the same function: each says why it cannot run a problem, or runs it."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from skiprnn import reference
from skiprnn.engines import cuda, events, native, traced
from skiprnn.problem import Problem, Solution

ENGINES = ("auto", "reference", "events", "cuda", "graph")
"""The names that a user may give."""
ON_GPUS = ("cuda", "graph")  # alone


def solve(name: str, problem: Problem) -> Solution:
    """Run a problem with the first engine of that name that can.

    Raises:
        RuntimeError: none can.
    """
    reason = None
    if problem.numbers is not None:
        ready = native.with_numbers(problem) if name in ("auto", "events") else None
        problem = ready or problem.looked_up()
    for engine in _engines(name, problem):
        reason = engine.why_not(problem)
        if reason is None:
            solution: Solution = engine.run(problem)
            return solution
    raise RuntimeError(f"engine={name!r} cannot run this: {reason}; use 'auto', or 'reference', which always can")


def _engines(name: str, problem: Problem) -> Sequence[ModuleType]:
    """Those to choose from, the fastest first."""
    if name == "reference":
        return (reference,)
    if name == "cuda":
        return (cuda,)
    if name == "graph":
        return (_graph(),)
    if name == "auto" and problem.x.is_cuda:
        return traced, cuda, *((_graph(),) if _has_triton() else ()), events, reference
    return (native, traced, events) if name == "events" else (native, traced, events, reference)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _graph() -> ModuleType:
    try:
        return import_module("skiprnn.engines.graph")
    except ImportError as error:
        raise RuntimeError(f"engine='graph' needs the package triton ({error}); use engine='auto'") from error
