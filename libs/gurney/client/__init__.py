"""Clients of Gurney's REST API: `AsyncClient`, and `Client` for scripts and notebooks."""

from gurney.client.api import AsyncClient
from gurney.client.sync import Client

__all__ = ["AsyncClient", "Client"]
