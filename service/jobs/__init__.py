"""The durable job store: what was accepted is on the disk before it is answered, and never lost.

May import: sqlalchemy (Core, no ORM), and the service's errors and URLs. It knows nothing of HTTP,
pictures or the engine: requests and answers are JSON documents. All of it is synchronous and may be
called from any number of threads at once; from a coroutine, call it by ``asyncio.to_thread``.

    store = JobStore.open(default_url(data_dir), boot_id=new_boot_id(), clock=time.time)
    store.recover()                -> Recovery(requeued ids, failed ids): what a crash left over
    store.accept(NewJob(kind="inpaint", key=key, request=json_text, file_prefix=prefix,
                        webhook=None, track_id=None, deadline=None),
                 limits=Limits(per_key=20, total=200))  -> Job; raises QueueFull; with begin=True
                                   it is claimed at once where nobody waits
    store.claim(limit, share=4)    -> list[Job]: oldest first, running now, attempt + 1
    store.finish(job.id, job.attempt, answer=body, files=names)  -> bool: False = fence lost
    store.fail(job.id, job.attempt, message)                     -> bool: False = fence lost
    store.requeue(job.id, job.attempt, crashed=True)             -> State, or None = fence lost
    store.cancel(job_id)           -> bool: True when it was queued and now never runs
    store.fail_overdue()           -> list of ids: queued past their deadline, failed now
    store.get(job_id, key)         -> Job with request or answer; None: another key's
    store.position(job_id)         -> int: queued jobs before it; None when it is not queued
    store.count(key)               -> int: queued jobs of a key
    store.statistics()             -> QueueStatistics(queued, running, oldest_age)
    store.expire(before)           -> list of file names whose jobs have been removed
    store.show(job_id), store.list_jobs(limit=, state=)  for the operator, without a key
    store.outbox                   -> Outbox: due, next_due, record, deliveries, redeliver, count
    store.writable()               -> bool: a commit works now
    store.close()

States: queued -> running -> done or failed; queued -> cancelled or failed (deadline); running ->
queued (requeue, recover). ``attempt`` grows with every claim; finish, fail and requeue match id,
attempt and boot id, so that a job has one outcome, whoever else still works on it. The webhook's
outbox row is written in the transaction that ends the job. Every method raises ``StoreError`` when
the database cannot do it: then nothing of the call has happened (where the connection to a
PostgreSQL server broke during a commit, the server alone knows).
"""

from __future__ import annotations

from service.jobs.database import default_url
from service.jobs.errors import QueueFull, StoreError
from service.jobs.outbox import Outbox
from service.jobs.store import JobStore, new_boot_id
from service.jobs.values import (
    MAX_CRASHES,
    Delivery,
    DeliveryState,
    Job,
    Limits,
    NewJob,
    QueueStatistics,
    Recovery,
    State,
)

__all__ = [
    "MAX_CRASHES",
    "Delivery",
    "DeliveryState",
    "Job",
    "JobStore",
    "Limits",
    "NewJob",
    "Outbox",
    "QueueFull",
    "QueueStatistics",
    "Recovery",
    "State",
    "StoreError",
    "default_url",
    "new_boot_id",
]
