"""Every service as a process under a NATS user of its own, that may use its own subjects only."""

from collections.abc import Iterator

import pytest

from gurney.testing.stack import Stack
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.applications import make_maps
from tests.e2e.test_handlers import handler, listening

pytestmark = [pytest.mark.needs("nats", "mongo", "minio"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One process of each service over one MongoDB and one S3 server."""
    folder = tmp_path_factory.mktemp("stack")
    environment = {"GURNEY_CPU": "2", "GURNEY_STOP_GRACE": "0.4"}
    with Stack(folder / "data", make_maps(folder / "maps"), environment, replicas=1, agents=1) as running:
        yield running


async def test_services_under_their_own_users_run_a_job(stack: Stack) -> None:
    """From the registration of a MAP to the webhook and the deletion, no service says or hears what it may not."""
    async with Api(stack.url, stack.token) as api, listening() as listener:
        await handler(api, listener)
        job = await work.shell(api, 'echo told; echo kept > "$HOLOSCAN_OUTPUT_PATH/result"')
        assert job["state"] == "succeeded", job
        await listener.told(1)
        async with api.events(f"/v1/jobs/{job['id']}/events") as events:
            assert [each.type async for each in events][-1] == "job.succeeded"
        assert (await api.get(f"/v1/jobs/{job['id']}/logs")).must(200).body == b"told\n"
        assert (await api.get(f"/v1/jobs/{job['id']}/results/result")).must(200).body == b"kept\n"
        (await api.post(f"/v1/jobs/{job['id']}/finalize")).must(200)
        (await api.delete(f"/v1/jobs/{job['id']}")).must(204)
    assert "permissions violation" not in stack.logs
