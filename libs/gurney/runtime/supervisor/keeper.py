"""Starts, watches and ends runs. The only module that changes a run's state."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from gurney.runtime.holes import punch
from gurney.runtime.supervisor import launch, memory, procfs, records
from gurney.runtime.supervisor.cores import Cores
from gurney.runtime.supervisor.kin import Kin
from gurney.runtime.supervisor.run import (
    LEASE,
    MEMORY,
    NOT_STARTED,
    STOPPED,
    TIMEOUT,
    Run,
    lapsed,
    lost,
    new_mark,
    not_started,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from gurney.runtime.supervisor.poller import Poller
    from gurney.runtime.supervisor.run import Reply

_SEARCH_S = 0.25
_DRAIN_S = 0.02
_SAVE_AGAIN_S = 1.0


class Keeper:
    def __init__(self, poller: Poller, ended: Callable[[str, dict[str, Any]], None]) -> None:
        self.runs: dict[str, Run] = {}
        self._poller = poller
        self._ended = ended
        self._by_pid: dict[int, Run] = {}
        self._kin = Kin(self.runs)
        self._cores = Cores()
        self._boot = procfs.boot_id()
        #: Ends that the disk would not take, by run id.
        self._unsaved: dict[str, dict[str, Any]] = {}
        self._save_at = 0.0

    # What is asked for

    def start(self, ask: dict[str, Any], reply: Reply) -> None:
        """Begin a run at most once; the answer comes when it is executed, or known to have been before."""
        run_id = ask["run_id"]
        if run := self.runs.get(run_id):
            if run.pipe >= 0:
                run.replies.append(reply)
            else:
                reply({"end": None})
        elif (end := self._end_of(run_id)) is not None:
            reply({"end": end})
        elif records.mark_of(run_id) is not None:
            reply({"end": self.adopt(run_id)})
        elif _has_lapsed(ask.get("lease_until")):
            self._never_begun(run_id, lapsed(), reply)
        else:
            try:
                self._fork(ask, reply)
            except OSError as error:
                self._never_begun(run_id, not_started(str(error)), reply)

    def _never_begun(self, run_id: str, end: dict[str, Any], reply: Reply) -> None:
        self._save(run_id, end)
        reply({"end": None})
        self._ended(run_id, end)

    def lease(self, run_ids: list[str], until: float) -> None:
        """Let runs live until then, but for those whose lease has lapsed."""
        for run in [self.runs[run_id] for run_id in run_ids if run_id in self.runs]:
            if not _has_lapsed(run.lease_until):
                run.lease_until = max(until, run.lease_until or 0.0)
        records.write_leases({run.id: run.lease_until for run in self.runs.values() if run.lease_until is not None})

    def stop(self, run_id: str, grace_s: float) -> None:
        run = self.runs.get(run_id)
        if run and run.running:
            self._ask_to_end(run, STOPPED, grace_s)

    def forget(self, run_id: str) -> bool:
        """Drop an ended run; False where it lives."""
        if run_id in self.runs:
            return False
        records.discard(run_id)
        self._unsaved.pop(run_id, None)
        return True

    def listing(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Yield run id and end (None: live) of all runs that were started and not forgotten."""
        for run_id in {*records.run_ids(), *self.runs, *self._unsaved}:
            if run_id in self.runs:
                yield run_id, None
            elif (end := self._end_of(run_id)) is not None:
                yield run_id, end
            elif records.mark_of(run_id) is not None:  # its starter died between mark and us: it came late
                yield run_id, self.adopt(run_id)

    def members(self) -> list[tuple[str, list[int]]]:
        """Return the processes of each run, as they were last seen."""
        return [(run.id, list({run.pid: None, **run.members})) for run in self.runs.values() if run.running]

    def adopt(self, run_id: str) -> dict[str, Any] | None:
        """Take over a run that another supervisor started; return its end where it is gone."""
        if (end := self._end_of(run_id)) is not None:
            return end
        mark = records.mark_of(run_id) or {}
        pid, ticks = mark.get("pid", 0), mark.get("ticks", 0)
        pidfd = -1
        if mark.get("boot") == self._boot and pid:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                pidfd = -1
        if pidfd < 0 or procfs.ticks(pid) != ticks:
            if pidfd >= 0:
                os.close(pidfd)
            return self._adopt_gone(run_id, mark)
        run = self.runs[run_id] = Run(run_id, pid, mark)
        run.ticks, run.pidfd = ticks, pidfd
        ending = records.ending_of(run_id)
        run.reason, run.kill_at = ending.get("reason", ""), ending.get("kill_at")
        if (until := records.leases().get(run_id)) is not None:
            run.lease_until = max(until, run.lease_until or 0.0)
        self._cores.hold(mark["cpus"], mark["cpu"])
        self._poller.watch(pidfd, lambda _: self._adopted_ended(run))
        return None

    def _adopt_gone(self, run_id: str, mark: dict[str, Any]) -> dict[str, Any]:
        """Write the end of a run whose main process ended unseen, after killing what it left."""
        if mark.get("boot") == self._boot:
            run = Run(run_id, mark["pid"], mark)
            run.ticks = mark["ticks"]
            run.exited(None)
            while left := self._kin.refresh(run):
                for pid, ticks in left.items():
                    procfs.send(pid, ticks, signal.SIGKILL)
                if time.monotonic() > run.drain_until:
                    break
                time.sleep(_DRAIN_S / 10)
        end = lost(mark)
        if reason := records.ending_of(run_id).get("reason"):
            end["cause"] = reason
        self._save(run_id, end)
        return end

    def abandon(self) -> None:
        """Kill all that runs, where nobody will ever ask for it."""
        us = os.getpid()
        until = time.monotonic() + _DRAIN_S * 50
        while time.monotonic() < until:
            roots = [us, *(run.pid for run in self.runs.values() if run.running)]
            left = {pid: started for pid in procfs.descendants(roots) if pid != us and (started := procfs.ticks(pid))}
            if not left:
                return
            for pid, started in left.items():
                procfs.send(pid, started, signal.SIGKILL)
            time.sleep(_DRAIN_S / 10)

    # The beginning

    def _fork(self, ask: dict[str, Any], reply: Reply) -> None:
        run_id = ask["run_id"]
        absolute = records.prepare(run_id)
        cpus = self._cores.take(ask["cpu"])
        mark = new_mark(ask, cpus, self._boot)
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.pthread_sigmask(signal.SIG_BLOCK, launch.HELD)
        try:
            pid = os.fork()
            if pid == 0:
                launch.become(absolute, ask, mark, theirs)
        except OSError:
            os.close(ours)
            self._cores.release(cpus, ask["cpu"])
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, launch.HELD)
            os.close(theirs)
        run = self.runs[run_id] = self._by_pid[pid] = Run(run_id, pid, mark)
        run.pipe = ours
        run.replies.append(reply)
        run.look_at = time.monotonic() + _DRAIN_S
        self._poller.watch(ours, lambda _: self._hear(run))

    def _hear(self, run: Run) -> None:
        """Read what became of the exec."""
        try:
            told = os.read(run.pipe, 4096)
        except BlockingIOError:
            return
        self._poller.unwatch(run.pipe)
        os.close(run.pipe)
        run.pipe = -1
        kind, text = told[:1], told[1:].decode(errors="replace")
        end = None
        if kind == launch.MARKED:
            self._let_go(run)
            self._by_pid.pop(run.pid, None)
            end = self.adopt(run.id)
        elif kind == launch.NOT_BEGUN:
            run.reason, run.message = NOT_STARTED, text
        elif kind == launch.NOT_EXECUTED:
            run.message = text
        for reply in run.replies:
            reply({"end": end})
        run.replies = []

    # The end

    def reap(self) -> None:
        """Take in every child that ended."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            run = self._by_pid.pop(pid, None)
            if owner := run or self._kin.owner(pid):
                owner.cpu += usage.ru_utime + usage.ru_stime
            if run:
                if run.pipe >= 0:
                    self._hear(run)
                run.exited(status)
                run.peak = max(run.peak, memory.peak_of(usage))
        for run in [each for each in self.runs.values() if not each.running]:
            self._drain(run)

    def _adopted_ended(self, run: Run) -> None:
        self._poller.unwatch(run.pidfd)
        run.exited(None)
        self._drain(run)

    def _drain(self, run: Run) -> None:
        """Kill what the main process left; when nothing is left write the end."""
        now = time.monotonic()
        left = self._kin.refresh(run)
        if left and now < run.drain_until:
            for pid, ticks in left.items():
                procfs.send(pid, ticks, signal.SIGKILL)
            run.look_at = now + _DRAIN_S
            return
        if left:
            run.message = (run.message + " processes of the run could not be killed").strip()
        self._let_go(run)
        end = run.end()
        self._save(run.id, end)
        self._ended(run.id, end)
        if not self.runs:
            for pid, ticks in self._kin.strays().items():
                procfs.send(pid, ticks, signal.SIGKILL)

    def _let_go(self, run: Run) -> None:
        del self.runs[run.id]
        self._cores.release(run.mark["cpus"], run.mark["cpu"])
        if run.pidfd >= 0:
            os.close(run.pidfd)

    def _ask_to_end(self, run: Run, reason: str, grace_s: float) -> None:
        """SIGTERM now, SIGKILL after the grace; who asked first is the cause, unless the run was faster."""
        kill_at = time.monotonic() + grace_s
        if run.reason:
            run.kill_at = kill_at if run.kill_at is None else min(run.kill_at, kill_at)
            return
        if run.has_exited():
            return
        run.reason, run.kill_at = reason, kill_at
        records.write_ending(run.id, reason, kill_at)
        run.signal_group(signal.SIGTERM)
        run.signal_group(signal.SIGCONT)  # a stopped process would keep the signal for later

    def _kill(self, run: Run) -> None:
        run.signal_group(signal.SIGKILL)
        for pid, ticks in self._kin.refresh(run).items():
            procfs.send(pid, ticks, signal.SIGKILL)

    # Time

    def tick(self) -> float | None:
        """Do what is due; return the seconds until the next, None where nothing waits."""
        now = time.monotonic()
        due = [self._tick(run, now) for run in list(self.runs.values())]
        if self._unsaved:
            if now >= self._save_at:
                for run_id, end in list(self._unsaved.items()):
                    self._save(run_id, end)
            due.append(self._save_at)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _tick(self, run: Run, now: float) -> float:
        if not run.running:
            if now >= run.look_at:
                self._drain(run)
            return run.look_at
        if run.kill_at is not None and now >= run.kill_at:
            self._kill(run)
            run.kill_at = now + 1.0
        if run.deadline is not None and now >= run.deadline:
            run.deadline = None
            self._ask_to_end(run, TIMEOUT, run.mark["grace_s"])
        if run.lease_until is not None and now >= run.lease_until:
            run.lease_until = None
            self._ask_to_end(run, LEASE, 0.0)  # without grace: the next attempt may begin soon
        if now >= run.look_at and run.pipe < 0:
            self._look(run, now)
        due = (run.kill_at, run.deadline, run.lease_until, run.look_at)
        return min(each for each in due if each is not None)

    def _look(self, run: Run, now: float) -> None:
        """Measure the memory and enforce the limit."""
        search = now >= run.search_at
        if search:
            run.search_at = now + _SEARCH_S
        limit = run.mark["memory"]
        held = memory.used(self._kin.refresh(run, search=search), limit)
        run.peak = max(run.peak, held)
        self._shorten_log(run)
        if run.adopted:
            run.cpu = max(run.cpu, sum(found.cpu for pid in run.members if (found := procfs.stat(pid))))
        run.look_at = now + memory.pause(held, limit, time.monotonic() - now)
        if 0 < limit < held and not run.has_exited():
            if not run.reason:
                run.reason, run.message = MEMORY, f"{held} bytes held, {limit} allowed"
                records.write_ending(run.id, MEMORY, now)
            self._kill(run)

    def _shorten_log(self, run: Run) -> None:
        with contextlib.suppress(OSError):
            log = os.open(f"{records.folder(run.id)}/log", os.O_WRONLY | os.O_CLOEXEC)
            try:
                run.hole = punch(log, os.fstat(log).st_size, run.hole)
            finally:
                os.close(log)

    # Keeping

    def _end_of(self, run_id: str) -> dict[str, Any] | None:
        return self._unsaved.get(run_id) or records.end_of(run_id)

    def _save(self, run_id: str, end: dict[str, Any]) -> None:
        try:
            records.prepare(run_id)
            records.write_end(run_id, end)
            self._unsaved.pop(run_id, None)
        except OSError:
            self._unsaved[run_id] = end
            self._save_at = time.monotonic() + _SAVE_AGAIN_S


def _has_lapsed(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until
