"""A user's own sequences, in any of the forms that ``forms`` tells apart, to a data file."""

from pipelines.sources.own.forms import SUFFIXES
from pipelines.sources.own.raw import How
from pipelines.sources.own.write import WrittenSequences, earlier, write_own

__all__ = ["SUFFIXES", "How", "WrittenSequences", "earlier", "write_own"]
