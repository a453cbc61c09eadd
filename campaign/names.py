"""Hostile names for every path that a command takes: too long, not UTF-8, empty, below a file."""

import os
from pathlib import Path
from typing import Any

import click

from campaign.cases import Attack, Kind, Scene, Verdict, judge, silent_or_lost
from campaign.fuzz import TRAIN
from campaign.originals import EXTRACTION, few_reviews
from campaign.processes import run

FRAMES = " ".join(EXTRACTION)
GRID = "--set steps=2 --set eval_every=2 --set hidden_size=4 --set batch_size=32 --jobs 1"
# A command, its other options, and its paths with names that are good; {o}: the undamaged files
COMMANDS: list[tuple[str, str, dict[str, str]]] = [
    ("gen-data adding", "--train 8 --val 4 --test 4", {"--out": "a.h5"}),
    ("gen-data sine", "--train 8 --val 4 --test 4", {"--out": "a.h5"}),
    ("gen-data mnist", "--digits 1,7", {"--source": "{o}/digits", "--out": "a.h5"}),
    ("gen-data imdb", "--length 6 --min-count 1",
     {"--source": "{o}/reviews", "--word2vec": "{o}/vectors.txt", "--out": "a.h5"}),
    ("gen-data own", "", {"source": "{o}/own.npz", "--out": "a.h5"}),
    ("extract-features ucf101", FRAMES, {"videos": "{o}/clips", "--splits": "{o}/own", "--out": "a.h5"}),
    ("extract-features videos", FRAMES, {"source": "{o}/clips", "--out": "a.h5"}),
    ("train", " ".join(TRAIN), {"--data": "{o}/adding.h5", "--out": "new"}),
    ("train", "--steps 12", {"--resume": "run"}),
    ("evaluate", "", {"run": "{o}/run", "--data": "{o}/adding.h5"}),
    ("predict", "", {"run": "{o}/run", "input": "{o}/adding.h5"}),
    ("predict", "", {"run": "{o}/clips-run", "input": "{o}/clips/class0/0.avi", "--weights": "{o}/weights.pth"}),
    ("reproduce", "adding --preset quick --dry-run --runs 1", {"--data": "{o}", "--out": "a"}),
    ("sweep", f"--cell lstm --lam 0 {GRID}", {"--data": "{o}/adding.h5", "--out": "a"}),
    ("report", "", {"folder": "{o}/sweep", "--out": "a.html"}),
    ("export", "", {"run": "{o}/run", "--data": "{o}/adding.h5", "--out": "a.onnx"}),
    ("plot-usage", "--examples 1",
     {"run": "{o}/run", "--data": "{o}/adding.h5", "--videos": "{o}/clips", "--out": "a.png"}),
    ("plot-curves", "", {"runs": "{o}/run", "--out": "a.png"}),
]  # fmt: skip
HOSTILE = ("of 300 bytes", "over 4,096 bytes", "not UTF-8", "empty", "of two lines", "below a file")
SECONDS = 60.0  # extraction and sweeps start processes of their own


def hostile(kind: str, good: Path, folder: Path) -> str:
    """A name of a kind for what a good name names; where that exists, so does the new one, if it can."""
    name = {
        "of 300 bytes": "x" * 300 + good.suffix,
        "over 4,096 bytes": "x/" * 2500 + f"x{good.suffix}",
        "not UTF-8": os.fsdecode(b"caf\xe9\xff") + good.suffix,
        "empty": "",
        "of two lines": f"a\nb{good.suffix}",
        "below a file": f"file/x{good.suffix}",
    }[kind]
    if good.exists() and kind in ("not UTF-8", "of two lines"):
        (folder / name).symlink_to(folder / good)
    return name


def paths_of(command: click.Command, name: str = "") -> dict[str, set[str]]:
    """The paths that each command takes, as click knows them."""
    if not isinstance(command, click.Group):
        return {name: {param.opts[0] for param in command.params if isinstance(param.type, click.Path)}}
    context = click.Context(command)
    found: dict[str, set[str]] = {}
    for part in command.list_commands(context):
        sub = command.get_command(context, part)
        assert sub is not None
        found |= paths_of(sub, f"{name} {part}".strip())
    return found


def attacks(times: float) -> list[Attack]:
    """Every path of every command under every name."""
    cases = [(command, path, kind) for command in COMMANDS for path in command[2] for kind in HOSTILE]

    def prepare(scene: Scene) -> Any:
        from skiprnn_cli.main import cli

        for name, paths in paths_of(cli).items():
            if missing := paths - {path for command in COMMANDS if command[0] == name for path in command[2]}:
                raise RuntimeError(f"{name} takes {missing}, which campaign/names.py does not know")

    def case(number: int, scene: Scene) -> list[Verdict]:
        few_reviews()
        (name, options, paths), hostile_one, kind = cases[number]
        (scene.folder / "file").write_text("")
        if paths.get("--resume"):
            scene.copy("run")
        command = [*name.split(), *options.split()]
        positional = []
        for path, good in paths.items():
            value = good.format(o=scene.originals)
            if path == hostile_one:
                value = hostile(kind, Path(scene.folder, value), scene.folder)
            if path.startswith("--"):
                command += [path, value]
            else:
                positional.append(value)
        command += ["--", *positional] if positional else []
        before = (scene.folder / "file").stat().st_mtime_ns
        done = run(command, scene.folder, seconds=SECONDS)
        command = [ascii(word)[1:-1] for word in command]
        verdict = judge(done, f"{hostile_one} {kind}", command)
        if not (scene.folder / "file").exists() or (scene.folder / "file").stat().st_mtime_ns != before:
            return [silent_or_lost(Kind.LOST, verdict.what, command, "the file that a name goes below is another")]
        return [verdict]

    needs = (
        "run", "clips-run", "adding.h5", "own.npz", "own", "digits", "reviews", "vectors.txt", "clips",
        "weights.pth", "sweep",
    )  # fmt: skip
    return [Attack("names", round(len(cases) * min(times, 1)), case, needs, prepare)]
