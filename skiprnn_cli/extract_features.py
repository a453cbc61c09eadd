"""``skiprnn extract-features``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.errors import SkipRNNError
from pipelines.runs.config import DATA
from skiprnn_cli import options
from skiprnn_cli.groups import Group
from skiprnn_cli.messages import note

if TYPE_CHECKING:
    import torch

    from pipelines.video.extraction import Summary
    from pipelines.video.listing import VideoSet

SHOWN = 10  # failures printed; the report has all


class Shard(options.ParamType[tuple[int, int]]):
    """I/N: the I-th of N parts, counted from 0."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        index, _, count = str(value).partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            self.fail(f"{value!r} is not I/N with I from 0 to N - 1, such as 0/4.", param, ctx)
        return int(index), int(count)


@click.group(
    "extract-features",
    cls=Group,
    epilog="Example: skiprnn extract-features ucf101 ~/UCF-101 --splits ~/ucfTrainTestlist",
)
def command() -> None:
    """Compute the features of video frames: a folder of videos to one HDF5 file to train on.

    A video that is done is not done again: run the same command after an interruption, or after more videos came.
    Each video ends as ok, truncated or failed in a report beside the file.
    """


def extraction_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every extraction."""
    for option in reversed(
        [
            click.option("--fps", type=options.Number(min=0, min_open=True), default=25.0, show_default=True,
                         help="Frames to look at in a second, whatever the video's own rate."),
            click.option("--seconds", type=options.Number(min=0, min_open=True), default=10.0, show_default=True,
                         help="How much of a video, from its beginning."),
            click.option("--network", type=click.Choice([f"resnet{n}" for n in (18, 34, 50, 101, 152)]),
                         default="resnet50", show_default=True, help="Whose average pool gives the features."),
            click.option("--weights", default="imagenet1k_v1", show_default=True,
                         help="imagenet1k_v1 or imagenet1k_v2 (downloaded by torchvision), a .pth or .safetensors "
                         "file, or random."),
            click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                         help="Of the splits, and of random weights."),
            click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                         help="auto: CUDA where there is one."),
            click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto",
                         show_default=True, help="Of the network's products; auto: bfloat16 on CUDA, else float32."),
            click.option("--batch-size", type=click.IntRange(min=1), help="Frames at once.  [default: 8; CUDA: 128]"),
            click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one a CPU core]"),
            click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True,
                         help="Of the features in the file."),
            click.option("--limit", type=click.IntRange(min=1),
                         help="Only so many videos, from all classes in turn."),
            click.option("--shard", type=Shard(),
                         help="Do each N-th video only; the last shard merges all.  [default: torchrun's or SLURM's "
                         "rank, else 0/1]"),
            click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                         help="Processes of this machine, or actors of a Ray cluster (extra: ray)."),
            click.option("--ray-address", help="The cluster's address.  [default: RAY_ADDRESS, or start one here]"),
            click.option("--allow-failures", is_flag=True, help="Leave out the videos that failed."),
            click.option("--out", type=options.PATH, help="File to write.  [default: data/NAME.h5]"),
            click.option("--overwrite", is_flag=True,
                         help="Replace an output that was made in another way, or holds other videos."),
        ]
    ):  # fmt: skip
        function = option(function)
    return function


@command.command(epilog="Example: skiprnn extract-features ucf101 ~/UCF-101 --splits ~/ucfTrainTestlist --limit 27")
@click.argument("videos", type=options.PATH, default=DATA / "UCF-101")
@click.option("--splits", type=options.PATH, help="Folder of the official lists.  [default: data/ucfTrainTestlist]")
@click.option("--split", type=click.Choice(["1", "2", "3"]), default="1", show_default=True, help="Official split.")
@extraction_options
def ucf101(videos: Path, splits: Path | None, split: str, **how: Any) -> None:
    """Extract UCF-101, in the folder VIDEOS with a folder for each class (default: data/UCF-101).

    15 % of each class's training groups (gNN, one scene) are for validation.
    """
    from pipelines.tasks import Ucf101
    from pipelines.video import listing

    found = listing.ucf101(videos, splits or DATA / "ucfTrainTestlist", split=int(split), seed=how["seed"])
    if found.missing:
        note(f"{videos} lacks {found.missing:,} videos of the lists; going on with the others")
    if found.unlisted:
        note(f"{videos} has {found.unlisted:,} videos that the lists do not name; leaving them out")
    _extract(found, DATA / "ucf101.h5", lambda **task: Ucf101(split=int(split), **task), **how)


@command.command(epilog="Example: skiprnn extract-features videos clips --seconds 30 --fps 10 --out data/clips.h5")
@click.argument("source", type=options.PATH)
@extraction_options
def videos(source: Path, **how: Any) -> None:
    """Extract your own videos.

    SOURCE is a folder with a folder of videos for each class, or a CSV list with the columns file and label, and
    perhaps split (train, val or test) and group (videos that must not stand on both sides of a split). Without
    splits, 15 % of each class are for validation and 15 % for testing.
    """
    from pipelines.tasks import Videos
    from pipelines.video.listing import own_videos

    _extract(own_videos(source, seed=how["seed"]), DATA / f"{source.resolve().stem}.h5", Videos, **how)


def _extract(found: "VideoSet", default: Path, make_task: Callable[..., Any], **how: Any) -> None:
    from pipelines.parallel.devices import choose_device
    from pipelines.parallel.processes import cores
    from pipelines.video.decode import Sampling
    from pipelines.video.extraction import extract_features
    from pipelines.video.listing import handful
    from pipelines.video.network import load_network
    from pipelines.video.workers import local, on_ray
    from skiprnn_cli.progress import counted

    sampling = Sampling(how["fps"], how["seconds"])
    device = _own_gpu(choose_device("cpu" if how["executor"] == "ray" else how["device"]))
    weights = f"random:{how['seed']}" if how["weights"] == "random" else how["weights"]
    network, origin = load_network(how["network"], weights, precision=how["precision"], device=device)
    task = make_task(
        features=network.width, steps=sampling.steps, classes=tuple(found.classes), fps=how["fps"],
        seconds=how["seconds"], **origin.attributes(),
    )  # fmt: skip
    chosen = found.videos if how["limit"] is None else handful(found.videos, how["limit"])
    shard = how["shard"] or _rank()
    executor = (
        on_ray(how["workers"], how["ray_address"])
        if how["executor"] == "ray"
        else local(how["workers"] or max(cores() // _neighbours(), 1))
    )
    with counted("extracting", len(range(shard[0], len(chosen), shard[1])), "videos", "frames") as advance:
        summary = extract_features(
            found,
            how["out"] or default,
            task,
            network,
            executor,
            chosen=chosen,
            shard=shard,
            batch_size=how["batch_size"] or (128 if device.type == "cuda" else 8),
            dtype=how["dtype"],
            allow_failures=how["allow_failures"],
            overwrite=how["overwrite"],
            on_progress=advance,
        )
    _say(summary, how["allow_failures"])


def _say(summary: "Summary", allow_failures: bool) -> None:
    for name, reason in list(summary.failed.items())[:SHOWN]:
        click.echo(f"failed: {name}: {reason}", err=True)
    if len(summary.failed) > SHOWN:
        click.echo(f"and {len(summary.failed) - SHOWN} more, see {summary.report}", err=True)
    counts = f"{summary.videos - len(summary.failed) - summary.waiting:,} of {summary.videos:,} videos"
    if summary.truncated:
        counts += f", {summary.truncated} of them truncated (see {summary.report})"
    now = f"; now {summary.extracted:,} videos, {summary.steps:,} frames" if summary.extracted else ""
    if not summary.extracted and not summary.written:
        now = "; nothing was to do"
    if summary.merged:
        said = f"{summary.path}: {counts}{now}"
        click.echo(f"wrote {said}" if summary.written else said)
        return
    if summary.waiting:
        click.echo(f"{counts} done{now}; {summary.waiting:,} are left to other shards, the last of which merges")
    if len(summary.failed) == summary.videos:
        raise SkipRNNError(f"all {summary.videos} videos failed; see {summary.report}")
    if summary.failed and not allow_failures:
        raise SkipRNNError(
            f"{len(summary.failed)} of {summary.videos} videos failed (see {summary.report}), so {summary.path} is not "
            "written now; mend or remove them, or pass --allow-failures, and run the same command again: what is done "
            "is kept"
        )


def _own_gpu(device: "torch.device") -> "torch.device":
    """A GPU for each process that torchrun or SLURM started on this machine."""
    import torch

    local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if device.type == "cuda" and local_rank.isdecimal():
        return torch.device("cuda", int(local_rank) % torch.cuda.device_count())
    return device


def _neighbours() -> int:
    """Processes that torchrun started on this machine."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(count) if count.isdecimal() and int(count) else 1


def _rank() -> tuple[int, int]:
    """This process's place among those that torchrun or SLURM started."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):  # the latter by srun only
        if os.environ.get(rank, "").isdecimal() and os.environ.get(size, "").isdecimal():
            shard = int(os.environ[rank]), int(os.environ[size])
            if shard[0] < shard[1] and shard[1] > 1:
                note(f"shard {shard[0]}/{shard[1]}, by {rank} and {size}")
                return shard
    return 0, 1
