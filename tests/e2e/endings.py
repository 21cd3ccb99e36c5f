"""What holds of a run's end in every runtime: which output comes home, which is refused, how a failure is told.

Each case is a shell script that uses what a POSIX shell and busybox have. `$OUT` is the output folder.
"""

import io
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.e2e import work
from tests.e2e.api import Api, Json

#: Runs a script as a job, with these options, to its end.
Run = Callable[..., Awaitable[Json]]

_OUT = 'OUT="${HOLOSCAN_OUTPUT_PATH:-$MONAI_OUTPUTPATH}"\n'
#: A pipe whose reader holds all of it in memory.
_EAT = "head -c 400000000 /dev/zero | tail -n 1 > /dev/null; sleep 60"
_LINES = 100

#: Script -> the files that come home, with their content, and empty folders (`/` at the end).
OUTPUTS: dict[str, tuple[str, dict[str, bytes]]] = {
    "nothing": ("true", {}),
    "spaces-and-utf-8": (
        'mkdir "$OUT/Müller, Ä"; echo 1 > "$OUT/Müller, Ä/脳 #1 100%?.dcm"; echo 2 > "$OUT/-rf ~ *"',
        {"Müller, Ä/脳 #1 100%?.dcm": b"1\n", "-rf ~ *": b"2\n"},
    ),
    "nested": (
        'mkdir -p "$OUT/a/b/c/d/e" "$OUT/a/empty/inner" "$OUT/.hidden"; echo deep > "$OUT/a/b/c/d/e/f"',
        {"a/b/c/d/e/f": b"deep\n", "a/empty/inner/": b"", ".hidden/": b""},
    ),
    "closed": (
        'mkdir "$OUT/d"; echo x > "$OUT/d/f"; chmod 0 "$OUT/d/f" "$OUT/d"',
        {"d/f": b"x\n"},
    ),
    "links-inside": (
        'cd "$OUT"; mkdir d; echo one > d/f; ln -s d/f link; ln -s d also',
        {"d/f": b"one\n", "link": b"one\n", "also/f": b"one\n"},
    ),
}

#: Scripts that leave `bad` in the output, each by means that every runtime leaves to an application.
REJECTED = {
    "link-out": 'ln -s /etc/hostname "$OUT/bad"',
    "link-up": 'ln -s ../../.. "$OUT/bad"',
    "link-to-nothing": 'ln -s nothing "$OUT/bad"',
    "link-in-a-circle": 'ln -s . "$OUT/bad"',
    "fifo": 'mkfifo "$OUT/bad"',
    "endless": """
        mkdir "$OUT/bad"; cd "$OUT/bad"
        path=d; for i in $(seq 9); do path=$path/$path; done
        for i in 1 2 3; do mkdir -p $path; cd $path; done
    """,
    "too-large": 'dd if=/dev/zero of="$OUT/bad" bs=1 seek=67108864 count=1 2> /dev/null',
}

#: Writes `5,000` files, fifty folders of a hundred.
MANY = """cd "$OUT"
for d in $(seq 50); do mkdir $d; for f in $(seq 100); do echo $d.$f > $d/$f; done; done"""


@dataclass(frozen=True)
class Failure:
    """A way to fail, after 150 lines of log and one file of output."""

    script: str
    code: str
    #: None: it does not matter.
    exit_code: int | None
    options: dict[str, Any] = field(default_factory=dict)


_BRIEF = {"timeout_s": 1}

FAILURES = {
    "exits": Failure("exit 7", "exit_nonzero", 7),
    "dies": Failure("kill -SEGV $$", "exit_nonzero", 139),
    "sleeps": Failure("sleep 60", "timeout", None, _BRIEF),
    "ignores-sigterm": Failure("trap '' TERM; while :; do sleep 0.05; done", "timeout", 137, _BRIEF),
    "succeeds-late": Failure("trap 'exit 0' TERM; while :; do sleep 0.05; done", "timeout", 0, _BRIEF),
    "eats-memory": Failure(_EAT, "oom_killed", 137),
    "says-so": Failure("""echo '{"exception": "no lungs"}' > "$OUT/metadata.json" """, "exception", 0),
    "says-so-in-python": Failure(
        """echo '{"exception": "no lungs", "dice": NaN}' > "$OUT/metadata.json" """, "exception", 0
    ),
    "is-rejected": Failure('ln -s /etc/hostname "$OUT/bad"', "output_rejected", 0),
}


async def check_output(api: Api, run: Run, name: str) -> None:
    """All that was written comes home: one by one, and in the archive, which has the empty folders, too."""
    script, expected = OUTPUTS[name]
    job = await run(_OUT + script)
    assert job["state"] == "succeeded", job
    files = {path for path in expected if not path.endswith("/")}
    assert {path for path in await work.results(api, job) if not path.endswith("/")} == files
    for path in files:
        assert await work.result(api, job, quote(path)) == expected[path]
    whole = (await api.get(f"/v1/jobs/{job['id']}/results")).must(200)
    with zipfile.ZipFile(io.BytesIO(whole.body)) as archive:
        assert {path: archive.read(path) for path in archive.namelist()} == expected
    if not expected:
        (await api.get(f"/v1/jobs/{job['id']}/results/x", case="no results")).must(404)
        assert await work.log(api, job) == ""


async def check_rejected(api: Api, run: Run, making: str) -> None:
    """The job fails by what its output must not have; regular files are kept as partial results."""
    job = await run(f'{_OUT}set -e; echo good > "$OUT/good"; {making}')
    assert (job["state"], job["reason"]["code"], job["exit_code"]) == ("failed", "output_rejected", 0), job["log_tail"]
    assert "bad" in job["reason"]["message"]
    await _is_partial(api, job, {"good"})


async def check_failure(api: Api, run: Run, name: str) -> None:
    """A failure is told as what it is, with the last 100 lines of the log; what was written is kept as partial."""
    failure = FAILURES[name]
    job = await run(f'{_OUT}echo half > "$OUT/half"; seq 150; {failure.script}', **failure.options)
    assert (job["state"], job["reason"]["code"]) == ("failed", failure.code), job
    assert failure.exit_code in {None, job["exit_code"]}, job
    last = [line for line in job["log_tail"] if line.isdecimal()]
    assert last == [str(number) for number in range(151 - len(last), 151)], job["log_tail"]
    assert len(job["log_tail"]) == _LINES
    assert len(last) >= _LINES - 1  # a shell may say what became of its child
    if name.startswith("says-so"):
        kept = {"exception": "no lungs"} if name == "says-so" else None  # as NaN is no JSON
        assert (job["reason"]["message"], job["metadata"]) == ("no lungs", kept)
    await _is_partial(api, job, {"half", *(["metadata.json"] if name.startswith("says-so") else [])})
    assert await work.result(api, job, "half") == b"half\n"


async def check_many(api: Api, run: Run) -> None:
    """5,000 files in folders all come home, each with its content."""
    job = await run(_OUT + MANY, timeout_s=50)
    assert job["state"] == "succeeded", job
    assert (await work.results(api, job)).keys() == {f"{d}/{f}" for d in range(1, 51) for f in range(1, 101)}
    assert await work.result(api, job, "50/99") == b"50.99\n"
    assert (await api.get(f"/v1/payloads/{job['results']}")).json["files"] == 5000


async def _is_partial(api: Api, job: Json, files: set[str]) -> None:
    assert (await work.results(api, job)).keys() == files
    assert (await api.get(f"/v1/payloads/{job['results']}")).json["partial"] is True
