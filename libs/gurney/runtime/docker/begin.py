"""The beginning of a run, in one go on one thread: container, mark, start. All of it blocks.

The container's name can be taken once, and the mark is left before the daemon is told to start. So whoever comes after
a crash finds: a container without a mark, which never ran and is made again; or a mark, and starts nothing.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from docker.errors import APIError, DockerException
from requests import RequestException

from gurney import clock
from gurney.errors import Invalid
from gurney.runtime.docker.daemon import Client
from gurney.runtime.docker.ending import end_of, not_started, state_of
from gurney.runtime.docker.host import Host
from gurney.runtime.docker.house import House, name_of
from gurney.runtime.docker.output import Output
from gurney.runtime.docker.records import Mark
from gurney.runtime.port import End, RunSpec

_TAKEN, _ABSENT = 409, 404
#: What the daemon says when the namespace that was lent is no more. The application has surely not begun then.
_NO_NETWORK = ("cannot join network of a non running container", "No such container")


class NoNamespaceError(Exception):
    """The run surely did not begin, for want of its network namespace."""


class Beginning:
    """One attempt to begin a run."""

    def __init__(self, client: Client, house: House, run_id: str) -> None:
        self._client = client
        self._house = house
        self._run_id = run_id

    def create(self, body: Mapping[str, Any]) -> str:
        """Make the container; one of that name which never ran makes way. Raises `Invalid` where it is another's."""
        name = name_of(self._run_id)
        for _ in range(2):
            try:
                return self._client.make(body, name)
            except APIError as error:
                if error.status_code != _TAKEN:
                    raise
            self._clear(name)
        raise Invalid(f"the container {name} is made by somebody else at the same time")

    def _clear(self, name: str) -> None:
        try:
            found = self._client.inspect_container(name)
        except APIError as error:
            if error.status_code == _ABSENT:
                return
            raise
        if not self._house.owns(found["Config"]["Labels"]):
            raise Invalid(f"there is a container {name} of somebody else")
        self.remove(found["Id"])

    def remove(self, container: str) -> None:
        """Remove a container that may be half gone already."""
        with suppress(APIError):
            self._client.remove_container(container, v=True, force=True)

    def start(self, container: str, *, has_namespace: bool) -> End | None:
        """Tell the daemon to start; return the end where it could not."""
        try:
            self._client.start(container)
        except APIError as error:
            told = str(error.explanation or error)
            if has_namespace and any(words in told for words in _NO_NETWORK):
                raise NoNamespaceError(told) from error
            return self._failed(container, told)
        return None

    def _failed(self, container: str, told: str) -> End | None:
        try:
            state = self._client.inspect_container(container)["State"]
        except APIError:
            return not_started(told)
        if state["Running"]:
            return None
        return end_of(state_of({"Error": told, **{k: v for k, v in state.items() if v}}), None)


@dataclass(frozen=True)
class Begun:
    """What has become of it."""

    mark: Mark
    output: Output
    #: Where it could not be started.
    end: End | None = None
    #: The daemon broke off: it may have been started, it may not.
    is_doubtful: bool = False


def begin(client: Client, host: Host, spec: RunSpec, body: Mapping[str, Any], lent: str) -> Begun:
    """Make and start the container of a run that is not marked yet; `NoNamespaceError` leaves nothing behind.

    `lent`: the container whose network namespace it joins; empty: none.
    """
    run_id = spec.run_id
    beginning = Beginning(client, host.house, run_id)
    container = beginning.create(body)
    try:
        host.records.prepare(run_id)
        followed = host.pump.follow(host.daemon.attach(container, replay=False, follow=True), host.records.log(run_id))
        mark = _mark(host, spec, container, lent)
    except BaseException:
        beginning.remove(container)
        raise
    output = Output(host, run_id, container, followed)
    try:
        end = beginning.start(container, has_namespace=bool(lent))
    except NoNamespaceError:
        beginning.remove(container)
        host.records.unmark(run_id)
        raise
    except (DockerException, RequestException, OSError):
        return Begun(mark, output, is_doubtful=True)
    return Begun(mark, output, end)


def _mark(host: Host, spec: RunSpec, container: str, lent: str) -> Mark:
    """Leave the mark: from here on the run may have begun."""
    mark = Mark(
        container=container,
        network=lent,
        project=spec.project,
        memory=spec.memory,
        timeout_s=spec.timeout_s,
        started_at=clock.now().timestamp(),
    )
    host.records.mark(spec.run_id, mark)
    return mark
