"""Progress of long work: a live display on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from skiprnn_cli.messages import QUIET, USUAL, VERBOSE, level

if TYPE_CHECKING:
    from pipelines.runs.training import Report

PLAIN_EVERY = {USUAL: 5.0, VERBOSE: 1.0}  # seconds
NARROW = 72  # columns of a terminal, fewer than which have no room for a bar
GAP = 3  # spaces between fields
WANTED = ("step", "val {metric}", "used samples", "left", "val loss", "train loss", "rate")  # the first most of all


@contextmanager
def counted(what: str, total: int, unit: str, finer: str | None = None) -> Iterator[Callable[..., None]]:
    """Yield a function to call with the number of units just done, and of finer ones, in which the rate is given."""
    if level() == QUIET:
        yield lambda count, fine=None: None
        return
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(*_columns(console.width), console=console) as live:
            task = live.add_task(what, total=total, rate="")
            started = monotonic()
            work = 0

            def advance(count: int, fine: int | None = None) -> None:
                nonlocal work
                work += count if fine is None else fine
                live.update(task, advance=count, rate=pace(work, monotonic() - started, finer or unit))

            yield advance
        return

    started = reported = monotonic()
    done = work = 0
    every = PLAIN_EVERY[level()]

    def advance_plainly(count: int, fine: int | None = None) -> None:
        nonlocal done, work, reported
        done += count
        work += count if fine is None else fine
        now = monotonic()
        if now - reported >= every:
            seconds = now - started
            left = clock((total - done) * seconds / done)
            print_plain(
                console, f"{what}: {done:,} of {total:,} {unit}, {pace(work, seconds, finer or unit)}, {left} left"
            )
            reported = now

    yield advance_plainly


def _columns(width: int) -> list[ProgressColumn]:
    """What there is room for: on a narrow terminal no bar, then no time elapsed."""
    what, left = [TextColumn("{task.description}")], [TimeRemainingColumn()]
    numbers = [MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    if width >= NARROW:
        return [*what, BarColumn(), *numbers, *left, TimeElapsedColumn()]
    return [*what, *numbers, *left]


def print_plain(console: Console, line: str) -> None:
    """Print without markup, colours or wrapping."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def pace(work: int, seconds: float, unit: str) -> str:
    """A rate a second, or a minute if it is slow."""
    rate = work / max(seconds, 1e-9)
    return f"{rate:,.0f} {unit}/s" if rate >= 2 else f"{60 * rate:.1f} {unit}/min"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def training_display() -> Iterator[Callable[["Report"], None]]:
    """Yield a function to call after each step of training."""
    console = Console(stderr=True)
    quiet = level() == QUIET
    display = TrainingDisplay(more=level() >= VERBOSE)
    lines = quiet or not console.is_terminal

    def show(report: "Report") -> None:
        display.update(report)
        if lines and not quiet and (report.record is not None or display.first):
            print_plain(console, display.line())
        if report.warning is not None:  # above the live display
            print_plain(console, f"Warning: {report.warning}")

    if lines:
        yield show
        return
    with Live(
        console=console, get_renderable=lambda: display.table(console.width), refresh_per_second=4, transient=False
    ):
        yield show


class TrainingDisplay:
    """What is known of a training run: step, rate, time left, and the last evaluation."""

    def __init__(self, more: bool = False) -> None:
        self.more = more
        self.report: Report | None = None
        self.record: dict[str, Any] | None = None
        self.first = False
        self._start: tuple[float, int] | None = None
        self.rate = 0.0  # steps/s since this process began

    def update(self, report: "Report") -> None:
        self.first = self._start is None
        if self._start is None:
            self._start = (report.seconds, report.step)
        self.report, self.record = report, report.record or self.record
        elapsed = report.seconds - self._start[0]
        self.rate = (report.step - self._start[1]) / elapsed if elapsed > 0 else 0.0

    def fields(self) -> dict[str, str]:
        """Names and values to show."""
        if self.report is None:
            return {"step": "starting"}
        shown = {"step": f"{self.report.step:,}/{self.report.total_steps:,}"}
        if self.rate:
            shown["rate"] = f"{self.rate:.1f} steps/s"
            shown["left"] = clock((self.report.total_steps - self.report.step) / self.rate)
        if self.record is not None:
            train, val = self.record["train"], self.record["val"]
            shown["train loss"] = f"{train['task_loss']:.5f}"
            shown["val loss"] = f"{val['loss']:.5f}"
            shown[f"val {self.report.metric_name}"] = f"{val['metric']:.5f}"
            shown["used samples"] = f"{val['used_mean']:.1f}"
            if self.more:
                shown["train metric"] = f"{train['metric']:.5f}"
                shown["gradient"] = f"{train['grad_norm']:.3g}, at most {train['grad_norm_max']:.3g}"
                if self.record.get("lam") is not None:
                    shown["λ"] = f"{self.record['lam']:.3g}"
        return shown

    def line(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self.fields().items())

    def table(self, width: int) -> Table:
        """The fields side by side; where there is no room for all, the last in ``WANTED`` are left out."""
        fields = self.fields()
        wanted = [name.format(metric=self.report.metric_name) for name in WANTED] if self.report is not None else []
        for name in [name for name in fields if name not in wanted] + [name for name in wanted[::-1] if name in fields]:
            if sum(max(len(key), len(value)) + GAP for key, value in fields.items()) - GAP <= width:
                break
            if len(fields) > 1:
                del fields[name]
        table = Table.grid(padding=(0, GAP))
        table.add_row(*(Text(name, style="dim") for name in fields))
        table.add_row(*fields.values())
        if self.report is not None:
            done = self.report.step / self.report.total_steps
            return _stacked(ProgressBar(total=1, completed=done, width=min(60, width)), table)
        return table


def _stacked(*rows: Any) -> Table:
    outer = Table.grid()
    for row in rows:
        outer.add_row(row)
    return outer
