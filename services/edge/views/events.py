"""Events as they happen, to whoever may see them: of everything, and of one job until it ends."""

from aiohttp import web

from gurney.errors import NotFound
from gurney.feed import Extent, Feed, Item, extent, last_sequence
from gurney.model.job import Job, JobGet
from gurney.subjects import JOB_EVENT, JOB_GET
from services.edge import event_feed, sse
from services.edge.call import Call
from services.edge.event_feed import STREAM, Start
from services.edge.parse import Query
from services.edge.sse import EventStream

#: Seconds in which the last event of a job that has ended comes, if it is still to come.
GRACE_S = 1.0


class EventsQuery(Query):
    #: Types of events, separated by commas.
    types: str = ""


async def index(call: Call) -> web.StreamResponse:
    """Send all events that the caller may see, from now on or from where he ended."""
    wanted = event_feed.types(call.query(EventsQuery).types)
    there = await extent(call.edge.bus, STREAM)
    start = event_feed.start(call.request.headers.get(sse.LAST_EVENT_ID), there, afresh=there.last)
    async with Feed(call.edge.bus, STREAM, after=start.after) as feed, sse.answering(call) as stream:
        await _tell_reset(stream, start, there)
        with sse.waking(feed, call.edge.stopping):
            await _send_all(call, feed, stream, _Sight(call, wanted, there.epoch, start.after))
    return stream.response


class _Sight:
    """What a client sees of the stream, message by message."""

    def __init__(self, call: Call, wanted: frozenset[str], epoch: int, after: int) -> None:
        self._caller = call.caller
        self._wanted = wanted
        self._epoch = epoch
        self._last = after

    def of(self, item: Item) -> bytes:
        """Return what a message is to the client; a break before it is told."""
        lost = item.sequence != self._last + 1 and self._last > 0
        before = event_feed.reset("too_old", self._epoch, item.sequence - 1) if lost else b""
        self._last = item.sequence
        if self._wanted and event_feed.type_of(item.subject) not in self._wanted:
            return before
        return before + (event_feed.rendered(item, self._epoch, self._caller) or b"")


async def _send_all(call: Call, feed: Feed, stream: EventStream, sight: _Sight) -> None:
    while not call.edge.stopping.is_set():
        item = await stream.next(feed, sse.KEEP_ALIVE_S)
        if item is None:
            await stream.send(sse.COMMENT)
            continue
        gathered = bytearray(sight.of(item))
        while len(gathered) < sse.GATHERED and (item := feed.next_now()):
            gathered += sight.of(item)
        if gathered:
            await stream.send(bytes(gathered))


async def of_job(call: Call) -> web.StreamResponse:
    """Send a job's events, from its first that the stream still has, until it ends."""
    job = await _read(call, call.id("job", "job"))
    bus = call.edge.bus
    there = await extent(bus, STREAM)
    start = event_feed.start(call.request.headers.get(sse.LAST_EVENT_ID), there, afresh=0)
    if start.after and job.terminal:
        last = await last_sequence(bus, STREAM, JOB_EVENT.of(event=job.state, job_id=job.id))
        if last is not None and last <= start.after:
            return web.Response(status=204)  # tells a browser not to come again
    subject = JOB_EVENT.of(event="*", job_id=job.id)
    async with Feed(bus, STREAM, subject, after=start.after) as feed, sse.answering(call) as stream:
        await _tell_reset(stream, start, there)
        with sse.waking(feed, call.edge.stopping):
            await _send_life(call, job, feed, stream, there.epoch)
    return stream.response


async def _send_life(call: Call, job: Job, feed: Feed, stream: EventStream, epoch: int) -> None:
    while not call.edge.stopping.is_set():
        item = await stream.next(feed, GRACE_S if job.terminal else sse.KEEP_ALIVE_S)
        if item is not None:
            await stream.send(event_feed.rendered(item, epoch, call.caller) or b"")
            if event_feed.type_of(item.subject) in event_feed.LAST:
                return
        elif job.terminal:
            await stream.send(event_feed.last_event(job))
            return
        else:
            await stream.send(sse.COMMENT)
            try:
                job = await _read(call, job.id)
            except NotFound:  # deleted, and the event lost with the stream
                return


async def _tell_reset(stream: EventStream, start: Start, there: Extent) -> None:
    if start.reset:
        await stream.send(event_feed.reset(start.reset, there.epoch, start.after))


async def _read(call: Call, job_id: str) -> Job:
    return await call.ask(JOB_GET, JobGet(caller=call.caller, job=job_id))
