"""Promise 8: jumps of the wall clock neither fire nor stall timers. libfaketime gives the service a
wall clock of the test's own; the monotonic clock stays the real one, as with a step by NTP."""
import datetime
import glob
import time

import pytest

from harness import SANITIZED, SLOWER, eventually
from origin import DEAD_HOST

pytestmark = pytest.mark.skipif(SANITIZED, reason="libfaketime does not work with the sanitizers")
DAY, YEAR = 86400, 365 * 86400


class Clock:
    def __init__(self, file):
        self.file = file
        [library] = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        self.set(0)
        self.env = {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(file),
                    "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def set(self, seconds):
        """The wall clock is this far from the right one."""
        self.file.write_text(f"{seconds:+d}s\n")
        self.offset = seconds


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path / "clock")


def when(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def check_times(batch, results):
    assert batch["created_at"] <= batch["started_at"] <= batch["ended_at"], batch
    for r in results:
        assert batch["started_at"] <= r["completed_at"] <= batch["ended_at"], (batch, r)
        assert 0 <= r["timing"]["total_ms"] < 60000 * SLOWER, r


@pytest.mark.parametrize("jump", [3600, -3600, 10 * YEAR, -DAY, -20 * YEAR],
                         ids=["hour-on", "hour-back", "years-on", "day-back", "years-back"])
def test_promise_8_a_step_neither_fires_nor_stalls_timers(start, origin, clock, jump):
    service = start(env=clock.env)
    retry = {"max_attempts": 2, "min_backoff_ms": 4000, "max_backoff_ms": 4000}
    quick = service.submit([origin.url("/delay/1?before")])
    timed = service.submit([origin.url("/delay/8")], defaults={"timeout_ms": 2000})
    waits = service.submit([f"http://{DEAD_HOST}:9/"] * 40, retry=retry)
    eventually(lambda: service.batch(waits["id"])["request_counts"]["retry_wait"] >= 30)
    began = time.monotonic()
    clock.set(jump)
    after = service.submit([origin.url("/delay/0.1?after")])
    assert abs(when(after["created_at"]) - time.time() - jump) < 10 * SLOWER, "the clock jumped"
    assert after["id"] > waits["id"] > timed["id"] > quick["id"], "ids sort"
    listed = [b["id"] for b in service.get("/v1/batches").json()["data"]]
    assert listed == [after["id"], waits["id"], timed["id"], quick["id"]]
    check_times(service.wait(after["id"]), service.results(after["id"]))
    poll = time.monotonic()
    service.get(f"/v1/batches/{waits['id']}?wait=1").expect(200)
    assert 0.9 < time.monotonic() - poll < 2 * SLOWER, "a long poll"
    check_times(service.wait(quick["id"]), service.results(quick["id"]))
    [r] = service.finish(timed)
    assert r["error"]["code"] == "timeout" and time.monotonic() - began < 4 * SLOWER
    ended = service.wait(waits["id"])
    took = time.monotonic() - began
    assert took < 7 * SLOWER, f"the retries waited {took} s"
    results = service.results(waits["id"])
    check_times(ended, results)
    spread = [r["timing"]["retry_wait_ms"] for r in results]
    # full jitter: anything up to 4 s, so 40 of them are not all near 0, nor over it
    assert 1500 < max(spread) < 5000 * SLOWER, "the retries fired by the jump"


@pytest.mark.parametrize("jump", [3 * DAY, -3 * DAY, 5 * YEAR], ids=["on", "back", "years-on"])
def test_promise_8_another_time_after_a_restart_neither_fires_nor_stalls_retries_for_long(
        start, origin, clock, jump):
    """Due times are kept as wall time. What is due later than any wait may be is brought forward."""
    service = start(env=clock.env)
    batch = service.submit([f"http://{DEAD_HOST}:9/"] * 30, retry={
        "max_attempts": 2, "min_backoff_ms": 3000, "max_backoff_ms": 3000,
        "max_retry_after_ms": 3000})
    slow = service.submit([origin.url("/delay/2?slow")], name="slow")
    eventually(lambda: service.batch(batch["id"])["request_counts"]["retry_wait"] >= 20)
    service.kill()
    clock.set(jump)
    service.start()
    began = time.monotonic()
    ended = service.wait(batch["id"])
    assert time.monotonic() - began < 6 * SLOWER
    results = service.results(batch["id"])
    assert {r["attempts"] for r in results} == {2}
    assert ended["created_at"] <= ended["started_at"] <= ended["ended_at"]
    assert service.wait(slow["id"])["request_counts"]["succeeded"] == 1


def test_promise_8_the_clock_goes_back_and_forth_all_the_time(start, origin, clock):
    service = start(env=clock.env)
    batch = service.submit([origin.url(f"/delay/0.02?{i}") for i in range(400)])
    n = 0
    while service.batch(batch["id"])["status"] != "completed":
        clock.set((0, 500, -500, YEAR, -YEAR)[n % 5])
        n += 1
        time.sleep(0.01)
    results = service.finish(batch)
    assert n > 10 and all(r["status"] == "succeeded" for r in results)
    check_times(service.batch(batch["id"]), results)
