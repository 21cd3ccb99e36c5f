"""The network of runs that may reach the outside: one for all runs of a house, on which none reaches another.

It stays, as the namespaces of `pause.py` do; whoever removes it finds it made again for the next run.
"""

import asyncio

from gurney.runtime.docker.daemon import Client, Daemon
from gurney.runtime.docker.house import PREFIX, House

_NOT_EACH_OTHER = {"com.docker.network.bridge.enable_icc": "false"}


class Outside:
    """The network of one house."""

    def __init__(self, daemon: Daemon, house: House) -> None:
        self._daemon = daemon
        self._house = house
        self._one_at_a_time = asyncio.Lock()

    async def network(self) -> str:
        """Return its name, made where it is not there. Raises `Refused` where the daemon makes no such networks."""
        async with self._one_at_a_time:  # of two at once the daemon makes two of one name
            await self._daemon.quick(self._provide)
        return self._name

    @property
    def _name(self) -> str:
        return PREFIX + self._house.id

    def _provide(self, client: Client) -> None:
        if not any(each["Name"] == self._name for each in client.networks(names=[self._name])):
            client.create_network(
                self._name, "bridge", options=_NOT_EACH_OTHER, labels=self._house.labels, check_duplicate=True
            )
