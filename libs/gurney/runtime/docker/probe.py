"""Whether a container may still open the devices of its GPUs.

The rules of its control group say so, which only its own processes meet: so one more is begun in it, a shell of its
image. That a rule refuses is `EPERM`; what a GPU suffers from itself reads otherwise, and is the driver's to tell.
(Linux: admin-guide/cgroup-v1/devices.rst, and "Device controller" of cgroup-v2.rst.)
"""

import asyncio

from gurney.runtime.docker.daemon import Client, Daemon, Refused

_MAY, _MAY_NOT = 0, 77
#: Those that NVIDIA's toolkit gives to each container that computes; it may have others that nothing needs.
_SCRIPT = f"""
found=78
for device in /dev/nvidia[0-9]* /dev/nvidiactl /dev/nvidia-uvm; do
    [ -c "$device" ] || continue
    found={_MAY}
    case $({{ : <"$device"; }} 2>&1) in *"not permitted"*) exit {_MAY_NOT} ;; esac
done
exit "$found"
"""
#: Bytes that the shell and what begins it need for a moment, of the memory that the run may have.
ROOM = 64 << 20
_AGAIN_S = 0.2


async def may_open(daemon: Daemon, container: str) -> bool | None:
    """Tell whether it may; None: its image has no shell, or it has no such devices. Raises `Unavailable`.

    Comes back only when the shell has ended: a device that hangs is not opened twice.
    """
    try:
        probe = await daemon.quick(lambda client: _begin(client, container))
        while True:
            told = await daemon.quick(lambda client: client.exec_inspect(probe))
            if not told["Running"]:
                return {_MAY: True, _MAY_NOT: False}.get(told["ExitCode"])
            await asyncio.sleep(_AGAIN_S)
    except Refused:  # without a shell, or ended meanwhile
        return None


def _begin(client: Client, container: str) -> str:
    environment = {"LC_ALL": "C"}
    made = client.exec_create(container, ["sh", "-c", _SCRIPT], stdout=False, stderr=False, environment=environment)
    client.exec_start(made["Id"], detach=True)
    return str(made["Id"])
