"""The files of versions say what pyproject.toml does."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAKED = {"mlflow", "wandb"}  # which the suite has stand-ins for


def pinned(name):
    lines = (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


def lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    found = [re.match(r"([A-Za-z0-9_-]+)>=([0-9.]+)$", one) for one in wanted]
    return {match[1]: match[2] for match in found if match}


def test_the_oldest_versions_are_the_lower_bounds():
    oldest, not_needed = pinned("oldest.txt"), {"mypy", "ruff", *FAKED}
    for name, bound in lower_bounds().items():
        if name not in not_needed:
            assert re.fullmatch(re.escape(bound) + r"(\.[0-9.]+)?", oldest[name]), name


def test_the_known_good_versions_are_within_the_bounds():
    good = pinned("known-good.txt")
    for name, bound in lower_bounds().items():
        if name in FAKED:
            continue
        assert [int(part) for part in re.findall(r"\d+", good[name])] >= [int(part) for part in bound.split(".")], name
