"""Syncs that fail (promises 1 and 2 of docs/reliability.md): nothing is confirmed meanwhile, reads go
on, and all goes on by itself when the disk syncs again."""
import contextlib
import os
import signal
import subprocess

import pytest

import harness
from harness import eventually


@contextlib.contextmanager
def failing_syncs(service, when="1+"):
    """The service's fdatasync fails with EIO; `when` is strace's."""
    strace = subprocess.Popen(
        ["strace", "-f", "-qq", "-p", str(service.process.pid), "-e", "trace=fdatasync", "-e",
         f"inject=fdatasync:error=EIO:when={when}", "-o", service.dir / "strace"],
        stderr=subprocess.PIPE)
    try:
        eventually(lambda: tracer(service) == strace.pid)
        yield lambda: (service.dir / "strace").read_text().count("EIO")
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(30)
        strace.stderr.close()


def tracer(service):
    """The process that traces all of its threads; 0: none, or not all."""
    tasks = f"/proc/{service.process.pid}/task"
    pids = set()
    for task in os.listdir(tasks):
        with open(f"{tasks}/{task}/status", encoding="utf-8") as f:
            pids.update(int(line.split()[1]) for line in f if line.startswith("TracerPid"))
    return pids.pop() if len(pids) == 1 else 0


def refused(answer):
    assert answer.status in (500, 503), answer
    assert answer.json()["status"] == answer.status
    return answer


def test_promise_2_nothing_is_confirmed_while_syncs_fail(start, origin):
    service = start()
    kept = service.submit([origin.url(f"/bytes/10?t=k{i}") for i in range(20)], name="kept")
    service.finish(kept)
    results = service.results(kept["id"])
    with failing_syncs(service) as failed:
        for i in range(3):
            refused(service.post("/v1/batches", {"urls": [origin.url("/bytes/1")], "name": f"r{i}"}))
        refused(service.delete(f"/v1/batches/{kept['id']}"))
        assert failed() >= 4
        assert service.results(kept["id"]) == results  # reads go on
        assert [b["name"] for b in service.get("/v1/batches").json()["data"]] == ["kept"]
    after = eventually(lambda: (lambda a: a.status == 202 and a)(
        service.post("/v1/batches", {"urls": [origin.url("/bytes/1?t=after")], "name": "after"})))
    service.finish(after.json())
    for kill in (True, False):  # what was refused does not come back
        service.restart(kill=kill)
        assert [b["name"] for b in service.get("/v1/batches").json()["data"]] == ["after", "kept"]
        assert service.results(kept["id"]) == results


def test_promise_2_results_wait_for_a_disk_that_syncs(start, origin):
    """Results that could not be stored are stored later, not fetched again."""
    service = start()
    batch = service.submit([origin.url(f"/delay/1?t=w{i}") for i in range(8)])
    with failing_syncs(service) as failed:
        eventually(lambda: failed() >= 2)
        eventually(lambda: origin.arrivals() == 8 and origin.active() == 0)
        assert service.results(batch["id"]) == []  # nothing is shown that is not on the disk
        assert service.batch(batch["id"])["status"] == "in_progress"
    results = service.finish(batch)
    assert len(results) == 8 and all(r["status"] == "succeeded" for r in results)
    assert origin.arrivals() == 8


@pytest.mark.parametrize("nth", [1, 2])
def test_promise_2_one_sync_that_fails(start, origin, nth):
    service = start()
    with failing_syncs(service, nth) as failed:
        accepted, answers = {}, 0
        while failed() == 0 or answers < 6:
            answers += 1
            answer = service.post("/v1/batches", {"urls": [origin.url(f"/bytes/9?t={answers}")]})
            if answer.status == 202:
                accepted[answer.json()["id"]] = answers
            else:
                refused(answer)
            assert answers < 50
    service.restart(kill=True)
    listed = service.get("/v1/batches").json()["data"]
    assert {b["id"] for b in listed} == set(accepted)
    for batch_id in accepted:
        assert [r["status"] for r in service.finish({"id": batch_id})] == ["succeeded"]
