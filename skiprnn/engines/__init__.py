"""The engines, which compute the same function: each says why it cannot run a problem, or runs it."""

from importlib import import_module
from types import ModuleType

from skiprnn import reference
from skiprnn.engines import events, native, traced
from skiprnn.problem import Problem, Solution

ENGINES: dict[str, tuple[ModuleType, ...]] = {
    "auto": (native, traced, events, reference),
    "reference": (reference,),
    "events": (native, traced, events),
    "triton": (),  # these are looked for when they are asked for
    "graph": (),
}
"""By the name that a user may give, those to choose from: the first that can."""


def solve(name: str, problem: Problem) -> Solution:
    """Run a problem with the first engine of that name that can.

    Raises:
        RuntimeError: none can.
    """
    reason = None
    for engine in ENGINES[name] or (_on_triton(name),):
        reason = engine.why_not(problem)
        if reason is None:
            solution: Solution = engine.run(problem)
            return solution
    raise RuntimeError(f"engine={name!r} cannot run this: {reason}; use 'auto', or 'reference', which always can")


def _on_triton(name: str) -> ModuleType:
    try:
        return import_module(f"skiprnn.engines.{name}")
    except ImportError as error:
        raise RuntimeError(f"engine={name!r} needs the package triton ({error}); use engine='auto'") from error
