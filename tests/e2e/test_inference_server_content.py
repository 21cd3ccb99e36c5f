"""A model's static content on the nodes of InferenceServer's tasks: fetched once, and kept for the next one."""

import asyncio
from collections import Counter

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gurney.testing.embedded import EmbeddedProcess
from tests.e2e.inference_server import InferenceServer, packed
from tests.e2e.servers import Server
from tests.e2e.test_inference_server_images import SHELL, server  # noqa: F401  # a server that has the images
from tests.e2e.zips import unpacked

pytestmark = [pytest.mark.needs("docker"), pytest.mark.needs("registry"), pytest.mark.timeout(180)]


async def counted(server: Server) -> Counter[str]:  # noqa: F811
    """Return for how many runs content was fetched, and for how many it was kept, as the nodes' metrics tell."""
    if isinstance(server, EmbeddedProcess):
        urls = [server.url]
    else:
        urls = [f"http://127.0.0.1:{server.processes[name].health}" for name in server.of("agent")]
    found: Counter[str] = Counter()
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(f"{url}/metrics") as answer:
                for family in text_string_to_metric_families(await answer.text()):
                    if family.name == "gurney_contents":
                        found.update({each.labels["result"]: int(each.value) for each in family.samples})
    return found


@pytest.mark.req("INF-03")
async def test_content_is_fetched_once_and_kept(inference: InferenceServer, server: Server) -> None:  # noqa: F811
    """One task after another, and several at once, find it; the metric says that it was fetched for the first alone."""
    before = await counted(server)
    model = await inference.model(SHELL, packed(files={"weights": "of this model"}))
    script = "cp /model/weights /output/told"

    async def told() -> dict[str, bytes]:
        uid = await inference.task(model, packed(script))
        return unpacked((await inference.output(uid)).must(200).body)

    found = [await told(), await told(), *(await asyncio.gather(*(told() for _ in range(3))))]
    assert found == [{"told": b"of this model"}] * 5
    after = await counted(server)
    after.subtract(before)
    assert after == {"fetched": 1, "kept": 4}
