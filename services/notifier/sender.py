"""Sends one delivery: signed by Standard Webhooks, no redirects, guarded addresses."""

import contextlib
from datetime import datetime
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from standardwebhooks import Webhook

from gurney import clock, telemetry
from gurney.ids import job_of_event
from gurney.model.handler import Delivery, DeliveryAttempt, Handler
from gurney.settings import Settings
from services.notifier.targets import GuardedResolver, allowed, is_address


class Sender:
    """A pool of connections to job handlers."""

    def __init__(self, settings: Settings) -> None:
        self._policy = settings.webhook_private
        self._timeout = aiohttp.ClientTimeout(total=settings.webhook_timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(resolver=GuardedResolver(self._policy), limit=256, limit_per_host=16)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=self._timeout, headers={"User-Agent": "Gurney"}, trust_env=False
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def send(self, handler: Handler, delivery: Delivery) -> DeliveryAttempt:
        """Try once; whatever happens is in the attempt."""
        at, begun = clock.now(), clock.monotonic()
        status: int | None = None
        error: str | None = None
        try:
            status = await self._post(handler, delivery, at)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as fault:
            error = f"{type(fault).__name__}: {fault}"[:256]
        telemetry.DELIVERIES.labels("delivered" if status and status // 100 == 2 else "failed").inc()  # noqa: PLR2004
        return DeliveryAttempt(at=at, status=status, error=error, duration_ms=int((clock.monotonic() - begun) * 1000))

    async def _post(self, handler: Handler, delivery: Delivery, at: datetime) -> int:
        if self._session is None or handler.secret is None:
            raise ValueError("the sender is not open")
        host = urlsplit(handler.url).hostname or ""
        if is_address(host) and not allowed(host, self._policy):
            raise OSError(f"{host} is an address that this server does not send to")
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery.event,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": Webhook(handler.secret).sign(delivery.event, at, delivery.body),
        }
        with telemetry.span(
            "webhook",
            telemetry.CLIENT,
            delivery.traceparent,
            service="notifier",
            about=job_of_event(delivery.event),
            attributes={"http.request.method": "POST", "server.address": host, "gurney.delivery": delivery.id},
        ) as span:
            headers["traceparent"] = span.traceparent
            async with self._session.post(
                handler.url, data=delivery.body.encode(), headers=headers, allow_redirects=False
            ) as answer:
                span.note("http.response.status_code", answer.status)
                with contextlib.suppress(aiohttp.ClientError):
                    await answer.content.read(1024)
                return answer.status
