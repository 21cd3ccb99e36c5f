"""What the clients make of local files and of answers."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gurney.cli import main
from gurney.client import AsyncClient
from gurney.client.payloads import local_files
from gurney.errors import Invalid, Unavailable

#: Of five bytes: no chunk ends where it does, but by chance.
TEXT = "ä€" * 200_000


@asynccontextmanager
async def serving(answer: Callable[[web.Request, web.StreamResponse], object]) -> AsyncIterator[AsyncClient]:
    """A client of a server that answers so to whatever it is asked."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await answer(request, response)  # type: ignore[misc]
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    async with TestServer(app) as server, AsyncClient(str(server.make_url("/"))) as client:
        yield client


async def test_no_character_of_a_log_is_cut_in_two() -> None:
    """A log is the text that it is, wherever its chunks end."""

    async def answer(_: web.Request, response: web.StreamResponse) -> None:
        await response.write(TEXT.encode())

    async with serving(answer) as client:
        assert "".join([text async for text in client.jobs.logs("job")]) == TEXT


async def test_a_gap_in_a_live_log_is_told() -> None:
    """Who follows a log of which the server leaves something out reads so."""

    async def answer(_: web.Request, response: web.StreamResponse) -> None:
        for name, data in (("log", '{"text": "a"}'), ("gap", '{"bytes": 7}'), ("log", '{"text": "b"}')):
            await response.write(f"event: {name}\ndata: {data}\n\n".encode())

    async with serving(answer) as client:
        told = "".join([text async for text in client.jobs.logs("job", follow=True)])
    assert told == "a\n[gurney: 7 bytes of the log are not here]\nb"


@pytest.mark.parametrize("patience_s", [60.0, 0.0])
async def test_who_waits_for_a_job_asks_a_server_that_was_away_again(
    monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    """The job goes on meanwhile; patience has an end."""
    monkeypatch.setattr("gurney.client.jobs.PATIENCE_S", patience_s)
    monkeypatch.setattr("gurney.client.jobs.PAUSE_S", 0.01)
    told = iter(["", "", '{"state": "running"}', "", '{"state": "succeeded"}'])

    async def answer(request: web.Request, response: web.StreamResponse) -> None:
        if said := next(told):
            await response.write(said.encode())
        else:
            _break_off(request)

    async with serving(answer) as client:
        if patience_s:
            assert await client.jobs.wait("job") == {"state": "succeeded"}
        else:
            with pytest.raises(Unavailable):
                await client.jobs.wait("job")


def _break_off(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


@pytest.mark.parametrize("follow", [True, False])
async def test_an_answer_that_breaks_off_is_an_error_of_ours(*, follow: bool) -> None:
    """As when the server is killed in the middle of it: one line for who sits at the command line."""

    async def answer(request: web.Request, response: web.StreamResponse) -> None:
        await response.write(b"data: ")
        _break_off(request)

    async with serving(answer) as client:
        with pytest.raises(Unavailable, match="broke off"):
            _ = [text async for text in client.jobs.logs("job", follow=follow)]


def _to_a_folder(at: Path) -> None:
    at.symlink_to("..")


def _to_nothing(at: Path) -> None:
    at.symlink_to("nowhere")


@pytest.mark.parametrize("make", [_to_a_folder, _to_nothing, os.mkfifo])
def test_a_folder_is_uploaded_whole_or_not_at_all(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """What is no file is told, not left out: among the slices of a series nobody would see that one is missing."""
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").touch()
    (tmp_path / "series" / "2.dcm").symlink_to("1.dcm")
    assert [path for path, _ in local_files([tmp_path])] == ["series/1.dcm", "series/2.dcm"]
    make(tmp_path / "series" / "3.dcm")
    with pytest.raises(Invalid, match=r"3\.dcm is no file"):
        local_files([tmp_path])


def test_an_error_without_a_text_is_told_by_its_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No line on the command line ends after `gurney: `."""

    def app() -> None:
        raise TimeoutError

    monkeypatch.setattr("gurney.cli.app", app)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "gurney: TimeoutError\n"
