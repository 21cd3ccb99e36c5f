import asyncio, shutil, os, time
from pathlib import Path
import pytest
from gurney.runtime.supervisor import procfs
from tests.core.test_runtime_supervisor import harness, app, WAIT
from tests.contract.runtime_harness import App

@pytest.mark.parametrize("script", [WAIT, "(setsid sleep 300 &) ; " + WAIT, "sleep 4", "(setsid sleep 300 &) ; sleep 1; exit 0"])
async def test_gone(harness, script):
    digest = (await harness.runtime.inspect(harness.urn)).digest
    a = App(harness, digest, script, "job_1-1"); a.pipe("ready","go")
    await harness.runtime.start(a.spec)
    if "ready" in script: await a.told("ready")
    pid = await asyncio.to_thread(harness.supervisor)
    shutil.rmtree(harness.data)
    await harness.runtime.close()
    t=time.monotonic()
    def cpu():
        f=Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split(); return f[0],(int(f[11])+int(f[12]))/100
    try:
        for i in range(8):
            await asyncio.sleep(1); print(script[:20], i, await asyncio.to_thread(cpu), await asyncio.to_thread(lambda: list(procfs.children(pid))))
    except OSError: print("exited", time.monotonic()-t)
    else:
        for p in await asyncio.to_thread(procfs.descendants, [pid]): 
            try: os.kill(p,9)
            except OSError: pass
    print("left", await asyncio.to_thread(harness.processes, "job_1-1"))
    for p in await asyncio.to_thread(harness.processes, "job_1-1"): os.kill(p,9)
    a.close()
    harness.finish = lambda: asyncio.sleep(0)
