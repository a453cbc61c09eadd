"""The engines, which compute the same function: each says why it cannot run a problem, or runs it."""

from types import ModuleType

from skiprnn import reference
from skiprnn.engines import events, native, traced
from skiprnn.problem import Problem, Solution

ENGINES: dict[str, tuple[ModuleType, ...]] = {
    "auto": (native, traced, events, reference),
    "reference": (reference,),
    "events": (native, traced, events),
    "triton": (),  # looked for when it is asked for
}
"""By the name that a user may give, those to choose from: the first that can."""


def solve(name: str, problem: Problem) -> Solution:
    """Run a problem with the first engine of that name that can.

    Raises:
        RuntimeError: none can.
    """
    reason = None
    for engine in ENGINES[name] or (_triton(),):
        reason = engine.why_not(problem)
        if reason is None:
            solution: Solution = engine.run(problem)
            return solution
    raise RuntimeError(f"engine={name!r} cannot run this: {reason}; use 'auto', or 'reference', which always can")


def _triton() -> ModuleType:
    try:
        from skiprnn.engines import triton
    except ImportError as error:
        raise RuntimeError(f"engine='triton' needs the package triton ({error}); use engine='auto'") from error
    return triton
