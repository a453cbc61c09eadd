"""Tables: on a terminal as wide as it is, elsewhere plain and whole."""

from collections.abc import Mapping, Sequence

import click

from skiprnn_cli.messages import note

GAP = 2  # spaces between columns
FOLDED = 24  # characters of the first column, to which it may be folded


def show_table(columns: Mapping[str, Sequence[str]], needed: Sequence[str], numbers: Sequence[str] = ()) -> None:
    """Print a table; where a terminal is narrow, names fold, some columns are left out, and no cell loses a digit.

    Args:
        columns: cells by the name of their column; columns without any text are left out.
        needed: names of columns, the most needed first.
        numbers: names of the columns that are aligned at their right.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    widths = {name: max(len(name), *map(len, cells)) for name, cells in shown.items()}
    if not console.is_terminal:
        for row in zip(*([name, *cells] for name, cells in shown.items()), strict=True):
            click.echo((" " * GAP).join(_aligned(row, widths, numbers)).rstrip())
        return
    first, missing = next(iter(shown)), list[str]()
    least = {**widths, first: min(widths[first], FOLDED)}
    for name in reversed([name for name in needed if name in shown]):
        if sum(least[name] + GAP for name in shown) - GAP <= console.width or len(shown) == 1:
            break
        missing.insert(0, name)
        del shown[name]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in shown:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold", no_wrap=name != first)
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    console.print(table, markup=False, highlight=False)
    if missing:
        note(f"no room for {', '.join(missing)}: widen the terminal, or pipe the output")


def _aligned(row: tuple[str, ...], widths: Mapping[str, int], numbers: Sequence[str]) -> list[str]:
    return [
        cell.rjust(width) if name in numbers else cell.ljust(width)
        for cell, (name, width) in zip(row, widths.items(), strict=True)
    ]
