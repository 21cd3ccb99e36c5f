"""The same no-op in Celery: prefork workers, acknowledged late, results over RabbitMQ."""

import os
import subprocess

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_BROKER"], backend="rpc://")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_send_sent_event=False)


@app.task
def noop() -> None:
    """Do nothing, in the worker's own process."""


@app.task
def spawn() -> int:
    """Start a process and wait for it, as Gurney does for each job."""
    return subprocess.run(["/bin/true"], check=True).returncode
