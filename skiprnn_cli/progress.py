"""Progress of long work: a live display on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pipelines.runs.training import Report

PLAIN_EVERY = 5.0  # seconds


@contextmanager
def counted(what: str, total: int, unit: str, finer: str | None = None) -> Iterator[Callable[..., None]]:
    """Yield a function to call with the number of units just done, and of finer ones, in which the rate is given."""
    console = Console(stderr=True)
    if console.is_terminal:
        rate = TextColumn("{task.fields[rate]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console) as live:
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

    def advance_plainly(count: int, fine: int | None = None) -> None:
        nonlocal done, work, reported
        done += count
        work += count if fine is None else fine
        now = monotonic()
        if now - reported >= PLAIN_EVERY:
            seconds = now - started
            left = clock((total - done) * seconds / done)
            print_plain(
                console, f"{what}: {done:,} of {total:,} {unit}, {pace(work, seconds, finer or unit)}, {left} left"
            )
            reported = now

    yield advance_plainly


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
    display = TrainingDisplay()
    lines = not console.is_terminal

    def show(report: "Report") -> None:
        display.update(report)
        if lines and (report.record is not None or display.first):
            print_plain(console, display.line())
        if report.warning is not None:  # above the live display
            print_plain(console, f"Warning: {report.warning}")

    if lines:
        yield show
        return
    with Live(console=console, get_renderable=display.table, refresh_per_second=4, transient=False):
        yield show


class TrainingDisplay:
    """What is known of a training run: step, rate, time left, and the last evaluation."""

    def __init__(self) -> None:
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
        return shown

    def line(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self.fields().items())

    def table(self) -> Table:
        table = Table.grid(padding=(0, 3))
        fields = self.fields()
        table.add_row(*(Text(name, style="dim") for name in fields))
        table.add_row(*fields.values())
        if self.report is not None:
            done = self.report.step / self.report.total_steps
            return _stacked(ProgressBar(total=1, completed=done, width=60), table)
        return table


def _stacked(*rows: Any) -> Table:
    outer = Table.grid()
    for row in rows:
        outer.add_row(row)
    return outer
