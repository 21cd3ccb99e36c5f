"""Progress bars, on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from gurney.cli.output import err
from gurney.client.http import Moved


@contextmanager
def bar(text: str, total: int, *, hidden: bool) -> Iterator[Moved]:
    """Show a bar of bytes while the block runs; yields what to call with each count of bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=err, disable=hidden or not err.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda count: progress.advance(task, count)
