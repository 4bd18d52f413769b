"""The policy: one shape a call, whoever waited longest first, nobody starves."""

from __future__ import annotations

from dataclasses import dataclass

from engine.batcher import pick


@dataclass
class Fake:
    name: str
    shape_key: str = "64"
    pixels: int = 1


def names(jobs: list[Fake]) -> str:
    return "".join(job.name for job in jobs)


def test_all_of_one_shape_go_together() -> None:
    assert names(pick([Fake("a"), Fake("b"), Fake("c")], max_pixels=8)) == "abc"


def test_the_longest_waiting_shape_goes_first() -> None:
    waiting = [Fake("a", "32"), Fake("b", "64"), Fake("c", "32")]
    assert names(pick(waiting, max_pixels=8)) == "ac"


def test_a_call_is_limited_and_smaller_jobs_fill_the_gap() -> None:
    waiting = [Fake("a", pixels=3), Fake("b", pixels=2), Fake("c", pixels=1)]
    assert names(pick(waiting, max_pixels=4)) == "ac"


def test_a_job_larger_than_a_call_goes_alone() -> None:
    assert names(pick([Fake("a", pixels=9), Fake("b")], max_pixels=4)) == "a"


def test_nothing_waits() -> None:
    assert pick([], max_pixels=4) == []


def test_nobody_starves() -> None:
    """Those served go to the back of the queue, as the engine does: all are served equally."""
    queue = [Fake(name, shape) for name, shape in zip("abcdef", "112213", strict=True)]
    served = dict.fromkeys("abcdef", 0)
    for _ in range(300):
        chosen = pick(queue, max_pixels=2)
        for job in chosen:
            served[job.name] += 1
            queue.remove(job)
            queue.append(job)
    assert max(served.values()) <= 2 * min(served.values())
