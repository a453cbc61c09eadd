"""``gen-data``: draw a synthetic task's sequences into a data file."""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.data.sequences import SPLITS, Sequences, sequences_writer
from pipelines.seeds import generator
from pipelines.tasks import SyntheticTask

CHUNK = 2**22  # steps drawn at a time; part of what the seed means


def generate(
    task: SyntheticTask,
    path: Path,
    sizes: dict[str, int],
    *,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda sequences: None,
) -> Path:
    """Write a data file. The same task, sizes and seed give the same bytes of data.

    Args:
        task: the task with its parameters.
        path: the HDF5 file to write.
        sizes: sequences of each of the splits train, val and test.
        seed: of the draws.
        overwrite: replace a file that exists.
        on_progress: called with the number of sequences just written.

    Returns:
        ``path``.

    Raises:
        SkipRNNError: the file exists, or cannot be written.
    """

    def chunks(split: str) -> Iterator[Sequences]:
        draws = generator(seed, task.name, split)
        size = max(CHUNK // task.length, 1)
        for start in range(0, sizes[split], size):
            chunk = task.sample(min(size, sizes[split] - start), draws)
            yield chunk
            on_progress(len(chunk))

    with sequences_writer(path, overwrite=overwrite) as writer:
        for split in SPLITS:
            writer.write_split(split, sizes[split], chunks(split))
        writer.finish({"task": task.name, **task.parameters(), "seed": seed})
    return path
