"""What MAPs bring along, as a node keeps it."""

import asyncio
import hashlib
import os
import subprocess
import threading
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from gurney import clock
from gurney.content import digest_of
from gurney.model.payload import FileView
from gurney.runtime.folder import remove_tree, sync
from services.agent import contents
from services.agent.contents import Contents
from services.agent.folders import Work, seal

SIZE = 1000


class House:
    """A node's cache that has room for two contents, and counts what is fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir()
        self.fetched: list[str] = []
        self.contents = self.anew()

    def anew(self) -> Contents:
        made = Contents(self.folder / "content", self.work, 2 * SIZE)
        made.open()
        return made

    async def bring(self, name: str, run: str) -> Work:
        """Have a run that needs what this digest names."""
        work = Work(self.work, run)
        await asyncio.to_thread(work.make)

        async def fill(folder: Path) -> None:
            self.fetched.append(name)
            await asyncio.sleep(0.01)
            await asyncio.to_thread((folder / "model").write_bytes, name.encode() * SIZE)
            await asyncio.to_thread(seal, folder)

        await self.contents.bring(f"sha256:{name}", work, fill)
        return work

    async def over(self, work: Work) -> None:
        """End a run."""
        await asyncio.to_thread(work.remove)

    @property
    def kept(self) -> set[str]:
        return {each.name for each in (self.folder / "content").iterdir()}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def counted() -> list[float]:
    """Return how many runs there were for which content was fetched, and how many for which it was kept."""
    found = [REGISTRY.get_sample_value("gurney_contents_total", {"result": each}) for each in ("fetched", "kept")]
    return [each or 0 for each in found]


async def test_content_is_fetched_once_for_all_runs(house: House) -> None:
    """Runs that need the same at once, and later, find it by a link; it is fetched once, and the metric says so."""
    before = counted()
    runs = await asyncio.gather(*(house.bring("a", f"run{number}") for number in range(4)))
    runs.append(await house.bring("a", "later"))
    assert house.fetched == ["a"]
    assert [now - then for then, now in zip(before, counted(), strict=True)] == [1, 4]
    for work in runs:
        assert (work.content / "model").read_bytes() == b"a" * SIZE


async def test_least_recently_used_goes_and_what_a_run_uses_stays(house: House) -> None:
    """Past the limit what was used least recently goes first, and never what a run has in hand."""
    for name in ("a", "b"):
        await house.over(await house.bring(name, f"run-{name}"))
    await house.over(await house.bring("a", "again"))
    in_use = await house.bring("c", "run-c")
    assert house.kept == {"a", "c"}
    for name in ("d", "e"):
        await house.over(await house.bring(name, f"run-{name}"))
    assert house.kept == {"c", "e"}
    assert (in_use.content / "model").exists()


async def test_what_is_just_going_is_fetched_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that comes for content while that makes room for other content has it whole."""
    for name in ("a", "b"):
        await house.over(await house.bring(name, f"run-{name}"))
    loop = asyncio.get_running_loop()
    coming: list[asyncio.Future[Work]] = []

    def remove(folder: Path) -> None:
        if folder.stem == "a":
            loop.call_soon_threadsafe(lambda: coming.append(asyncio.ensure_future(house.bring("a", "coming"))))
            threading.Event().wait(0.2)
        remove_tree(folder)

    monkeypatch.setattr(contents, "remove_tree", remove)
    await house.bring("c", "run-c")
    work = await coming[0]
    assert (work.content / "model").read_bytes() == b"a" * SIZE


async def test_content_is_on_disk_before_it_has_its_name(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves content whole or not there: all of it is on disk before it is where runs look."""
    synced: list[tuple[str, set[str]]] = []

    def note(path: Path) -> None:
        synced.append((path.name, house.kept))
        sync(path)

    monkeypatch.setattr(contents, "sync", note)
    await house.bring("a", "run")
    assert synced == [("a.draft", {"a.draft"}), ("model", {"a.draft"}), ("content", {"a"})]


async def test_what_nobody_needs_goes_unless_a_run_has_it(house: House) -> None:
    """Content is let go of at once, however much room there is, but not while a run has it."""
    in_use = await house.bring("a", "run-a")
    await house.over(await house.bring("b", "run-b"))
    assert sorted(await house.contents.digests()) == ["sha256:a", "sha256:b"]
    assert not await house.contents.let_go("sha256:a")
    assert await house.contents.let_go("sha256:b")
    assert not await house.contents.let_go("sha256:b")
    assert house.kept == {"a"}
    await house.over(in_use)
    assert await house.contents.let_go("sha256:a")
    assert house.kept == set()


async def test_a_crash_leaves_nothing_half_gone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content that was being removed when the agent was killed is not lent half, and goes at the next start."""

    def killed(folder: Path) -> None:
        remove_tree(folder / "model")
        raise SystemError

    await house.over(await house.bring("a", "run"))
    with monkeypatch.context() as crash:
        crash.setattr(contents, "remove_tree", killed)
        with pytest.raises(SystemError):
            await house.contents.let_go("sha256:a")
    assert await house.contents.digests() == []
    house.contents = await asyncio.to_thread(house.anew)
    assert house.kept == set()
    work = await house.bring("a", "next")
    assert (work.content / "model").read_bytes() == b"a" * SIZE


async def test_what_fails_half_way_is_not_kept(house: House) -> None:
    """Content that could not be brought whole is fetched again for the next run."""

    async def half(folder: Path) -> None:
        await asyncio.to_thread((folder / "model").write_bytes, b"half")
        raise ValueError("the rest is missing")

    work = Work(house.work, "first")
    await asyncio.to_thread(work.make)
    with pytest.raises(ValueError, match="missing"):
        await house.contents.bring("sha256:a", work, half)
    assert house.kept == set()
    second = await house.bring("a", "second")
    assert (second.content / "model").read_bytes() == b"a" * SIZE


async def test_a_crash_leaves_nothing_half(house: House) -> None:
    """What a killed agent was fetching goes at the next start; what is whole stays."""
    await house.bring("a", "run")
    (house.folder / "content/b.draft").mkdir()
    (house.folder / "content/b.draft/model").write_bytes(b"half")
    house.contents = await asyncio.to_thread(house.anew)
    assert house.kept == {"a"}


def test_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    """The digest can be had with `sha256sum`, whatever order files are told in; another byte or name is another."""
    files = {"b/ü": b"1", "a": b"", "b/x": b"2"}
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    views = [
        FileView(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), created_at=clock.now())
        for path, data in files.items()
    ]
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert digest_of(views) == f"sha256:{done.stdout.decode().split()[0]}"
    assert digest_of(reversed(views)) == digest_of(views)
    assert digest_of(views[1:]) != digest_of(views)
