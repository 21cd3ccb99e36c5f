"""Nodes as their heartbeats tell of them, and what is asked about them."""

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import nats.js.errors
from nats.aio.msg import Msg
from pydantic import ValidationError

from gurney import clock, consume, telemetry
from gurney.bus import AWAY
from gurney.documents.port import Write
from gurney.errors import GurneyError, NatsUnavailable, NoNodes, NoRuntime, NotFound
from gurney.model.base import Reason
from gurney.model.common import Page, Ref
from gurney.model.map import InspectAccepted, InspectMap
from gurney.model.run import Heartbeat, Node, NodeList, NodeState, Outcome, Placement, PlacementState
from gurney.paging import cut, decode_cursor, encode_cursor
from gurney.service import Service
from gurney.streams import agent_runs
from gurney.subjects import HEARTBEAT
from services.scheduler.cluster import Cluster
from services.scheduler.effects import Effects
from services.scheduler.placer import Placer
from services.scheduler.repository import NODES
from services.scheduler.runs import Runs
