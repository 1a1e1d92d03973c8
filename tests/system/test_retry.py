"""max_attempts: what is tried again, how often, and what a wait costs others."""
import time

import pytest

from harness import SLOWER
from origin import DEAD_HOST, HOSTS


def test_an_attempt_that_fails_is_made_again(service, origin):
    result = service.one(origin.url("/flaky/2/retry-a"), max_attempts=3)
    assert result["status"] == "succeeded" and result["attempts"] == 3
    assert result["body"] == "try 3" and result["timing"]["retry_wait_ms"] > 0
    assert [h.status for h in origin.hits(3)] == [503, 503, 200]


def test_max_attempts_bounds_the_attempts(service, origin):
    result = service.one(origin.url("/flaky/9/retry-b"), max_attempts=2)
    assert result["status"] == "failed" and result["attempts"] == 2
    assert result["http_status"] == 503 and result["body"] == "not yet"
    assert len(origin.hits(2)) == 2


def test_without_max_attempts_there_is_one(service, origin):
    result = service.one(origin.url("/flaky/1/retry-c"))
    assert result["status"] == "failed" and result["attempts"] == 1
    assert len(origin.hits(1)) == 1


@pytest.mark.parametrize("status, again", [(408, True), (425, True), (429, True), (500, True),
                                           (502, True), (503, True), (504, True), (400, False),
                                           (401, False), (404, False), (410, False), (501, False)])
def test_only_statuses_that_may_pass_are_tried_again(service, origin, status, again):
    result = service.one(origin.url(f"/flaky/1/status{status}?status={status}"), max_attempts=2)
    assert result["attempts"] == (2 if again else 1)
    assert result["status"] == ("succeeded" if again else "failed")


def test_broken_connections_are_tried_again(service, toxic):
    for path in (f"/close?{time.time()}", f"/bad-chunk?{time.time()}"):
        result = service.one(toxic.url(path), max_attempts=2)
        assert result["attempts"] == 2 and result["error"]["code"] == "protocol"
        assert toxic.hits[path] == 2, "each attempt is one request at the origin"


def test_connect_errors_and_timeouts_are_tried_again(service, toxic):
    result = service.one(f"http://{DEAD_HOST}:9/", max_attempts=2)
    assert result["attempts"] == 2 and result["error"]["code"] == "connect"
    result = service.one(toxic.url("/silent"), max_attempts=2, timeout_ms=300)
    assert result["attempts"] == 2 and result["error"]["code"] == "timeout"


@pytest.mark.parametrize("url", ["ORIGIN/bytes/9999", "TOXIC/encoded/broken-gzip"])
def test_what_would_end_the_same_way_is_not_tried_again(service, origin, toxic, url):
    url = url.replace("ORIGIN", origin.url("")).replace("TOXIC", toxic.url(""))
    result = service.one(url, max_attempts=3, max_body_bytes=100)
    assert result["status"] == "failed" and result["attempts"] == 1, result


def test_retry_after_is_waited_for(service, origin):
    result = service.one(origin.url("/flaky/1/after?after=1"), max_attempts=2)
    assert result["attempts"] == 2 and result["status"] == "succeeded"
    assert result["timing"]["retry_wait_ms"] >= 1000


@pytest.mark.parametrize("after", ["-1", "garbage", "Thu, 01 Jan 1970 00:00:00 GMT", ""])
def test_a_senseless_retry_after_does_no_harm(service, origin, after):
    token = "senseless" + "".join(c for c in after if c.isalnum())
    url = origin.url(f"/flaky/1/{token}?after={after.replace(' ', '%20')}")
    result = service.one(url, max_attempts=2)
    assert result["status"] == "succeeded" and result["timing"]["retry_wait_ms"] < 5000


def test_waiting_for_a_retry_holds_no_slot(start, origin):
    service = start("--max-parallel", 1)
    waiting = service.submit(requests=[{"url": origin.url(f"/flaky/1/hold{i}?after=2",
                                                          HOSTS[1 + i]),
                                        "max_attempts": 2} for i in range(5)])
    start_at = time.monotonic()
    other = service.submit([origin.url(f"/bytes/5?t={i}") for i in range(20)])
    service.finish(other)
    assert time.monotonic() - start_at < 1.9 * SLOWER
    counts = service.batch(waiting["id"])["request_counts"]
    assert counts["retry_wait"] == 5, counts
    results = service.finish(waiting)
    assert all(r["attempts"] == 2 and r["status"] == "succeeded" for r in results)


def test_a_cancelled_retry_wait_ends_at_once(service, origin):
    batch = service.submit(requests=[{"url": origin.url("/flaky/1/cancelled?after=50", HOSTS[40]),
                                      "max_attempts": 2}])
    while service.batch(batch["id"])["request_counts"]["retry_wait"] != 1:
        pass
    service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)
    result, = service.finish(batch)
    assert result["status"] == "cancelled"
    assert len(origin.hits(1)) == 1


def test_a_redirect_before_a_failure_is_followed_again(service, origin):
    url = origin.url("/redirect-to?url=" + origin.url("/flaky/1/redirected"))
    result = service.one(url, max_attempts=2)
    assert result["status"] == "succeeded" and result["attempts"] == 2
    assert len(result["redirects"]) == 1
