"""Promise 4: memory stays under the bound that the service prints, whatever comes. Small versions of
tests/memory/run."""
import pathlib
import re
import subprocess
import sys

import pytest

from harness import BINARY, SANITIZED, size

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "memory"))

import loads  # noqa: E402


def check(service):
    if not SANITIZED:  # which keep much memory for themselves
        loads.check(service)


def test_promise_4_a_start_and_a_check_print_the_same_plan(start, tmp_path):
    for limit, mib in (("64m", 64), ("300m", 300)):
        service = start("--memory-limit", limit)
        said = re.findall(r"memory: (at most [^\"\n]*)", service.stderr())
        checked = subprocess.run([BINARY, "--check", "--memory-limit", limit, "--data", tmp_path],
                                 capture_output=True, text=True).stdout
        assert said and f"\n# memory: {said[0]}\n" in checked
        assert loads.plan(service)["limit"] == mib


def test_promise_4_many_batches_of_many_hosts_share_one_window(start):
    service = start("--memory-limit", "64m")
    loads.many_hosts(service, size(50, 5), size(1000))
    check(service)


def test_promise_4_very_many_batches_of_one_url(start):
    """Above what memory allows the answer is 503; what was accepted goes on."""
    service = start("--memory-limit", "64m")
    origin = loads.Origin()
    statuses = {}
    try:
        for i in range(size(1500)):
            answer = service.post("/v1/batches", origin.url(f"/silent?{i}"), loads.TEXT)
            answer.expect(202, 503)
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            if answer.status == 503:
                assert answer.header("Retry-After")
        batches = service.get("/v1/batches").expect(200).json()["data"]
        assert batches[0]["request_counts"]["total"] == 1
        if not SANITIZED:
            assert statuses.get(503, 0) > 0, "the bound was not reached"
        service.delete(f"/v1/batches/{batches[0]['id']}").expect(204)
        service.post("/v1/batches", origin.url("/silent"), loads.TEXT).expect(202)
    finally:
        origin.close()
    check(service)


def test_promise_4_bodies_go_to_disk_as_they_arrive(start):
    service = start("--memory-limit", "64m", "--max-parallel", size(200, 20))
    loads.bodies(service, size(200, 20), 600_000)
    check(service)


def test_promise_4_slow_readers_hold_next_to_nothing(start):
    loads.more_descriptors()
    service = start("--memory-limit", "64m")
    loads.readers(service, size(200, 30), 0, results=size(4000), large=size(3_000_000))
    check(service)


@pytest.mark.parametrize("burst", [0, 800_000])
def test_promise_4_slow_uploaders(start, burst):
    loads.more_descriptors()
    service = start("--memory-limit", "64m")
    loads.uploaders(service, size(60, 10), 0, burst)
    check(service)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-ndjson", "application/json"])
def test_promise_4_a_long_submission_takes_no_more_memory_than_a_short_one(start, kind):
    service = start("--memory-limit", "64m")
    loads.queued(service, size(100_000), {"Content-Type": kind})
    check(service)


def test_promise_4_a_line_without_an_end_is_refused(start):
    service = start("--memory-limit", "64m")
    loads.one_line(service, 30_000_000)
    check(service)
