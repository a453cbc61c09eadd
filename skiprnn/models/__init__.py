"""Models with a name: those that came with this package, in the folders beside this file, and those that were fetched.

Each is a small run directory: what using it takes, without what only its training needed. `skiprnn models pack` makes
one of a run.
"""

import os
from difflib import get_close_matches
from pathlib import Path


def folders() -> tuple[Path, Path]:
    """Where models with a name lie: those that came with the package, and those that were fetched."""
    fetched = os.environ.get("SKIPRNN_MODELS") or os.path.expanduser("~/.cache/skiprnn/models")
    return Path(__file__).parent, Path(fetched)


def models() -> dict[str, Path]:
    """The run directories of the models that are here, by name; what came with the package goes first."""
    found = [config.parent for folder in reversed(folders()) for config in folder.glob("[!.]*/config.json")]
    return {path.name: path for path in sorted(found, key=lambda path: path.name)}


def run_or_model(path: Path) -> Path:
    """The path itself; where that is a mere name, and no run directory or file, the run directory of that model.

    Raises:
        FileNotFoundError: it is a mere name of nothing.
    """
    if len(path.parts) != 1 or path.is_file() or (path / "config.json").exists():
        return path
    known = models()
    if path.name in known:
        return known[path.name]
    if path.exists():
        return path
    alike = get_close_matches(path.name, known, n=1)
    raise FileNotFoundError(
        f"{path} is not a run directory, nor one of the models {', '.join(known)}"
        f"{f' (did you mean {alike[0]!r}?)' if alike else ''}; `skiprnn train` makes a run"
    )
