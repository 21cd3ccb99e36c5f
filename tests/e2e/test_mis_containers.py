"""The same promises to MONAI Inference Service's clients, with a MAP that is a container."""

from contextlib import closing

import pytest

from gurney.testing.docker import DockerDaemon, make_image
from tests.e2e.servers import Server
from tests.e2e.test_mis import (  # noqa: F401  # each is a test here, too
    _logs_are_calm,
    mis,
    test_a_body_that_breaks_off_runs_nothing,
    test_a_client_that_goes_away_stops_the_job,
    test_a_kill_of_the_service_stops_the_job,
    test_a_map_that_fails_is_told,
    test_a_request_past_its_time_is_ended,
    test_a_zip_goes_in_and_the_output_folder_comes_out,
    test_bad_input_runs_nothing,
    test_nothing_is_left_of_many_requests,
    test_one_request_at_a_time,
    test_the_deployment_says_what_a_run_gets,
    test_the_map_is_registered_once,
    test_the_path_without_its_slash_leads_there,
)

pytestmark = [pytest.mark.needs("docker"), pytest.mark.timeout(300), pytest.mark.embedded]

IMAGE = "e2e-mis:1"


@pytest.fixture(scope="session")
def server(docker_server: Server) -> Server:
    """A server whose agent has the daemon."""
    return docker_server


@pytest.fixture(scope="session")
def urn(docker_daemon: DockerDaemon) -> str:
    """An image with a shell, without manifests: the deployment says what it runs."""
    with closing(docker_daemon.client()) as client:
        make_image(client, IMAGE)
    return IMAGE
