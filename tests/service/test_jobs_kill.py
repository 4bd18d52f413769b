"""SIGKILL at random moments: nothing that was acknowledged is lost, nothing ends twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from service.jobs import JobStore, State, default_url
from tests.service.test_jobs import told

ROOT = Path(__file__).parent.parent.parent
KILLS = 20
SEED = 5

# A parent that imports once and forks per round; each round opens the store as a server would and
# works in threads until it is killed. A line on stdout is what a client has been told.
CHILD = """
import os, sys, threading
from service.jobs import JobStore, Limits, NewJob, QueueFull

LIMITS = Limits(per_key=30, total=30)

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def accept(store):
    while True:
        try:
            job = store.accept(
                NewJob(kind="inpaint", key="key", request="r" * 5000, file_prefix="p",
                       webhook="https://a.example/hook"),
                limits=LIMITS,
            )
            tell("accepted", job.id)
        except QueueFull:
            pass

def work(store, boot):
    while True:
        for job in store.claim(2):
            assert job.request == "r" * 5000
            if job.id % 7 == 0:
                if store.fail(job.id, job.attempt, f"{boot} {job.attempt}"):
                    tell("ended", job.id, boot, job.attempt)
            elif store.finish(job.id, job.attempt, answer={"by": f"{boot} {job.attempt}"}):
                tell("ended", job.id, boot, job.attempt)

def serve(url, boot):
    store = JobStore.open(url, boot_id=boot)
    store.recover()
    for target, arguments in [(accept, (store,)), (work, (store, boot)), (work, (store, boot))]:
        threading.Thread(target=target, args=arguments, daemon=True).start()
    tell("serving", os.getpid())
    threading.Event().wait()

for line in sys.stdin:
    url, boot = line.split()
    child = os.fork()
    if child == 0:
        serve(url, boot)
    os.waitpid(child, 0)
    tell("killed", child)
"""


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    url = default_url(tmp_path)
    dice = random.Random(SEED)
    accepted: set[int] = set()
    ended: Counter[int] = Counter()
    outcomes: dict[int, str] = {}
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for number in range(KILLS):
            parent.stdin.write(f"{url} boot{number}\n")
            parent.stdin.flush()
            due = None
            for line in parent.stdout:
                match line.split():
                    case ["serving", pid]:
                        due = time.monotonic() + dice.uniform(0, 0.3)
                    case ["accepted", job_id]:
                        accepted.add(int(job_id))
                    case ["ended", job_id, boot, attempt]:
                        ended[int(job_id)] += 1
                        outcomes[int(job_id)] = f"{boot} {attempt}"
                    case ["killed", _]:
                        break
                if due is not None and time.monotonic() >= due:
                    os.kill(int(pid), signal.SIGKILL)
                    due = None
        parent.stdin.close()
    assert len(accepted) > 5 * KILLS
    assert ended
    assert set(ended.values()) == {1}

    store = JobStore.open(url)
    try:
        store.recover()
        while jobs := store.claim(50):
            assert all(store.finish(job.id, job.attempt, answer={}) for job in jobs)
        found = {job.id: job for job in store.list_jobs(limit=10**6)}
        assert accepted <= set(found)
        assert {job.state for job in found.values()} <= {State.DONE, State.FAILED}
        for job_id, outcome in outcomes.items():
            job = store.show(job_id)
            assert job is not None
            said = job.answer["by"] if job.answer else job.message
            assert said == outcome
        for job in found.values():
            assert told(store, job)["track_id"] is None  # exactly one webhook each
    finally:
        store.close()
