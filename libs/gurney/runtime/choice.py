"""Which runtimes a host has. Blocks for a moment: a daemon is asked whether it is there."""

from gurney.runtime.port import Runtime
from gurney.runtime.process import ProcessRuntime
from gurney.settings import Settings

NONE = "none"


def runtimes(settings: Settings) -> list[Runtime]:
    """Return the runtimes of this host: folder MAPs always, Docker where it is asked for, answers, or has our runs."""
    found: list[Runtime] = [ProcessRuntime(settings.data, settings.maps, grace_s=settings.stop_grace)]
    if settings.docker_url != NONE and (settings.docker_url or _has_runs(settings) or _answers()):
        # Not before it is needed: the SDK takes its time to be imported.
        from gurney.runtime.docker.runtime import DockerRuntime

        docker = DockerRuntime(
            settings.data,
            node=settings.node,
            url=settings.docker_url,
            grace_s=settings.stop_grace,
            registry_config=settings.registry_config,
            image_cache=settings.image_cache,
        )
        found.append(docker)
    return found


def _has_runs(settings: Settings) -> bool:
    runs = settings.data / "docker" / "runs"
    return runs.is_dir() and any(runs.iterdir())


def _answers() -> bool:
    from gurney.runtime.docker.wire import answers, url_or_default

    return answers(url_or_default(None))
