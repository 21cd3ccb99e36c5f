"""Images that we pulled stay while something uses them, and go when they take too much; the site's always stay."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gurney.errors import ImageUnavailable
from gurney.runtime.docker import cache
from gurney.runtime.docker.daemon import Client
from gurney.runtime.docker.registries import Registries
from gurney.runtime.docker.runtime import DockerRuntime
from gurney.testing.docker import DockerDaemon, make_image
from gurney.testing.registry import Registry
from tests.contract.docker_harness import FILES, DockerHarness
from tests.contract.runtime_harness import GRACE_S, SECONDS, App

pytestmark = [pytest.mark.needs("docker"), pytest.mark.needs("registry")]

#: Room for one of the images and half of another.
ROOM = 3_000_000


class Site(DockerHarness):
    """A host with room for one image, and a registry that has several."""

    limit = ROOM

    def __init__(self, base: Path, daemon: DockerDaemon, registry: Registry) -> None:
        self.client: Client = daemon.client()
        self.registry = registry
        self.made: list[str] = []
        super().__init__(base, daemon, f"{registry.address}/nothing:1")

    def make(self) -> DockerRuntime:
        return DockerRuntime(self.data, node="n1", url=self.daemon.url, grace_s=GRACE_S, image_cache=self.limit)

    @property
    def cache(self) -> cache.Cache:
        assert isinstance(self.runtime, DockerRuntime)
        return self.runtime._cache

    def push(self, name: str | None = None, tag: str = "1", changes: tuple[str, ...] = ()) -> str:
        """Put an image into the registry that this host has not; returns its reference. Blocks."""
        name = name or f"cache-{os.urandom(4).hex()}"
        make_image(self.client, f"{name}:{tag}", FILES | {"etc/name": os.urandom(8).hex()}, changes)
        reference = self.registry.push(self.client, f"{name}:{tag}", name, tag)
        for each in (f"{name}:{tag}", reference):
            self.client.remove_image(each)
        self.made.append(reference.rpartition(":")[0])
        return reference

    async def pushed(self, *args: Any, **options: Any) -> str:
        return await asyncio.to_thread(lambda: self.push(*args, **options))

    async def registered(self, reference: str | None = None) -> str:
        """Register an image; returns how it is noted: repository and digest."""
        reference = reference or await self.pushed()
        digest = (await self.runtime.inspect(f"urn:oci:{reference}")).digest
        return f"{reference.rpartition(':')[0]}@{digest}"

    async def has(self, pinned: str) -> bool:
        return await asyncio.to_thread(self.client.image, pinned) is not None

    async def gone(self, pinned: str) -> None:
        """Wait until an image is gone."""
        async with asyncio.timeout(SECONDS):
            while await self.has(pinned):
                await asyncio.sleep(0.02)

    async def noted(self, *pinned: str) -> None:
        """Wait until these are what is noted on disk."""
        async with asyncio.timeout(SECONDS):
            while json.loads((self.data / "docker" / "images.json").read_text()).keys() != {*pinned}:
                await asyncio.sleep(0.02)

    def app(self, pinned: str, script: str, run_id: str = "job_1-1") -> App:
        """Return a run of an image."""
        repository, _, digest = pinned.rpartition("@")
        run = App(self, digest, script, run_id)
        run.spec = replace(run.spec, urn=f"urn:oci:{repository}:1")
        return run

    async def finish(self) -> None:
        await super().finish()
        await asyncio.to_thread(self._clear)

    def _clear(self) -> None:
        for repository in self.made:
            for image in self.client.images(name=repository):
                self.client.remove_image(image["Id"], force=True)
        self.client.close()


@pytest.fixture
async def site(tmp_path: Path, docker_daemon: DockerDaemon, registry: Registry) -> AsyncIterator[Site]:
    """An open site."""
    made = await asyncio.to_thread(Site, tmp_path, docker_daemon, registry)
    await made.open()
    yield made
    await made.finish()


async def test_the_least_recently_used_goes(site: Site) -> None:
    """A further image takes the place of the one that was used longest ago."""
    site.cache._limit = 2 * ROOM
    first, second = await site.registered(), await site.registered()
    await site.runtime.available(f"urn:oci:{first.rpartition('@')[0]}:1", first.rpartition("@")[2])
    site.cache._promised.clear()
    third = await site.registered()
    fourth = await site.registered()
    await site.gone(second)
    await site.noted(first, third, fourth)
    assert [await site.has(each) for each in (first, third, fourth)] == [True, True, True]


async def test_notes_survive(site: Site) -> None:
    """After a restart it is known what was pulled and when it was used; more room lets all stay."""
    site.cache._limit = 0
    first, second = await site.registered(), await site.registered()
    await site.noted(first, second)
    await site.reopen()
    await site.gone(first)
    await site.noted(second)
    assert await site.has(second)


async def test_images_of_the_site_stay(site: Site) -> None:
    """What was on this host before, pulled or built, with a tag or by its digest, is neither noted nor removed."""
    tagged, pinned = await site.pushed(), await site.pushed()
    await asyncio.to_thread(site.client.pull, tagged)
    digest = await asyncio.to_thread(site.client.inspect_distribution, pinned)
    repository = pinned.rpartition(":")[0]
    await asyncio.to_thread(site.client.pull, repository, digest["Descriptor"]["digest"])
    theirs = [await site.registered(each) for each in (tagged, pinned)]
    ours = [await site.registered() for _ in range(2)]
    await site.gone(ours[0])
    await site.noted(ours[1])
    assert [await site.has(each) for each in (*theirs, tagged)] == [True, True, True]


async def test_an_image_that_the_site_took_over(site: Site) -> None:
    """What we pulled and the site has pulled since is the site's."""
    reference = await site.pushed()
    pinned = await site.registered(reference)
    await asyncio.to_thread(site.client.pull, reference)
    ours = [await site.registered() for _ in range(2)]
    await site.gone(ours[0])
    await site.noted(ours[1])
    assert await site.has(reference)
    assert await site.has(pinned)


async def test_an_image_that_has_another_name(site: Site) -> None:
    """Of an image to which the site gave a name of its own only our reference goes."""
    pinned = await site.registered()
    await asyncio.to_thread(site.client.tag, pinned, "cache-theirs", "1")
    await site.registered()
    await site.gone(pinned)
    assert await site.has("cache-theirs:1")
    await asyncio.to_thread(site.client.remove_image, "cache-theirs:1")


async def test_an_image_in_use_by_a_run(site: Site) -> None:
    """The image of a run stays until the run is forgotten, by all its names, whatever else is pulled; then it goes."""
    pinned = await site.registered()
    await asyncio.to_thread(site.client.tag, pinned, "cache-theirs", "1")
    run = site.app(pinned, 'echo > "$OUT/ready"; read _ < "$OUT/go"')
    run.pipe("ready", "go")
    await site.runtime.start(run.spec)
    await run.told("ready")
    site.cache._limit = 1
    await site.gone(await site.registered())
    await site.cache.trim()
    assert await site.has(pinned)
    run.tell("go")
    assert (await run.end()).exit_code == 0
    await site.gone(await site.registered())
    await site.runtime.forget("job_1-1")
    async with asyncio.timeout(SECONDS):
        while await asyncio.to_thread(site.client.containers, all=True, filters={"label": "gurney.run"}):
            await asyncio.sleep(0.02)
    await asyncio.to_thread(site.client.remove_image, "cache-theirs:1")
    await site.registered()
    await site.gone(pinned)
    run.close()


async def test_an_image_that_was_promised_to_a_run(site: Site) -> None:
    """An image that was brought for a run stays until the run begins, as its input may take long."""
    pinned = await site.registered()
    run = site.app(pinned, "true")
    await site.runtime.available(run.spec.urn, run.spec.digest)
    await site.gone(await site.registered())
    assert await site.has(pinned)
    site.cache._promised.clear()
    await site.registered()
    await site.gone(pinned)


async def test_an_image_that_is_being_used_just_now(site: Site) -> None:
    """An image that an inspection or a start holds stays; who comes while it is removed waits, and has it again."""
    pinned = await site.registered()
    repository = pinned.rpartition("@")[0]
    async with site.cache.using(repository):
        await site.gone(await site.registered())
        assert await site.has(pinned)
    site.cache._leaving[pinned] = leaving = asyncio.Event()
    begun = asyncio.create_task(site.app(pinned, "true").run())
    await asyncio.sleep(0.1)  # nothing tells that somebody does nothing
    assert not begun.done()
    await asyncio.to_thread(site.client.remove_image, pinned)
    del site.cache._leaving[pinned]
    leaving.set()
    assert (await begun).exit_code == 0


async def test_an_older_image_of_a_repository(site: Site) -> None:
    """What is used of a repository keeps no older image of it."""
    reference = await site.pushed()
    old = await site.registered(reference)
    await site.pushed(reference.rpartition(":")[0].partition("/")[2])
    site.cache._limit = 0
    new = await site.registered(reference)
    site.cache._limit = ROOM
    asked = f"urn:oci:{reference}", new.rpartition("@")[2]
    await site.runtime.available(*asked)
    async with site.runtime._images.brought(*asked):  # type: ignore[attr-defined]
        await site.cache.trim()
    assert (await site.has(old), await site.has(new)) == (False, True)


async def test_a_pull_during_a_look(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pulled while the images are looked at is looked at right after."""
    looks: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def look() -> None:
        done = asyncio.Event()
        looks.put_nowait(done)
        await done.wait()

    monkeypatch.setattr(site.cache, "trim", look)
    for _ in range(2):
        await site.registered()
    for _ in range(2):
        (await asyncio.wait_for(looks.get(), SECONDS)).set()


@pytest.mark.parametrize("crash", ["before", "after"])
async def test_a_crash_around_a_pull(site: Site, crash: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was being pulled when the agent was killed is ours at its next start, if it is there."""
    pull = Registries.pull

    def cut_off(*args: Any) -> None:
        if crash == "after":
            pull(*args)
        raise KeyboardInterrupt

    reference = await site.pushed()
    monkeypatch.setattr(Registries, "pull", cut_off)
    monkeypatch.setattr(cache.Cache, "_settle", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        await site.runtime.inspect(f"urn:oci:{reference}")
    monkeypatch.undo()
    (pinned,) = site.cache._pulled
    assert site.cache._pulled[pinned].size == 0
    await site.reopen()
    if crash == "before":
        await site.noted()
    else:
        async with asyncio.timeout(SECONDS):
            while not site.cache._pulled[pinned].size:
                await asyncio.sleep(0.02)
        await site.registered()
        await site.gone(pinned)


async def test_a_pull_that_fails(site: Site) -> None:
    """Of an image that could not be pulled no note stays."""
    pinned = await site.registered()
    repository, _, digest = pinned.rpartition("@")
    await asyncio.to_thread(site.client.remove_image, pinned)
    await asyncio.to_thread(site.registry.remove, repository.partition("/")[2], pinned)
    with pytest.raises(ImageUnavailable):
        await site.runtime.available(f"urn:oci:{repository}:1", digest)
    await site.cache.trim()
    await site.noted()


async def test_a_tag_that_moves(site: Site) -> None:
    """A tag that moved is another MAP; jobs of the one before go on with theirs, and the host's own tag stays."""
    reference = await site.pushed(changes=("ENV WHICH=old",))
    repository = reference.rpartition(":")[0]
    old = await site.registered(reference)
    run = site.app(old, 'echo > "$OUT/ready"; read _ < "$OUT/go"; echo $WHICH')
    run.pipe("ready", "go")
    await site.runtime.start(run.spec)
    await run.told("ready")
    await asyncio.to_thread(site.client.tag, old, repository, "1")
    await site.pushed(repository.partition("/")[2], changes=("ENV WHICH=new",))
    await asyncio.to_thread(site.client.tag, old, repository, "1")
    new = await site.registered(reference)
    assert new != old
    run.tell("go")
    assert (await run.end()).exit_code == 0
    assert run.log() == "old\n"
    await site.runtime.forget("job_1-1")
    logs = {}
    for number, pinned in enumerate((new, old), 2):
        again = site.app(pinned, "echo $WHICH", f"job_{number}-1")
        assert (await again.run()).exit_code == 0
        logs[pinned] = again.log()
    assert logs == {new: "new\n", old: "old\n"}
    assert reference in (await asyncio.to_thread(site.client.image, old) or {})["RepoTags"]
    run.close()


async def test_volumes_of_an_image(site: Site) -> None:
    """The volumes that an image declares go with the containers: of an inspection, of a run, of a start that failed."""
    pinned = await site.registered(await site.pushed(changes=("VOLUME /data", "USER named")))
    assert await asyncio.to_thread(_volumes, site.client) == []
    run = site.app(pinned, "echo x > /data/x")
    await run.run()
    assert len(await asyncio.to_thread(_volumes, site.client)) == 1
    await site.runtime.forget("job_1-1")
    failed = site.app(pinned, "true", "job_2-1")
    failed.spec = replace(failed.spec, command=("/no/such/program",))
    await failed.run()
    await site.runtime.forget("job_2-1")
    async with asyncio.timeout(SECONDS):
        while await asyncio.to_thread(_volumes, site.client):
            await asyncio.sleep(0.05)


def _volumes(client: Client) -> list[str]:
    return [each["Name"] for each in client.volumes()["Volumes"] or ()]
