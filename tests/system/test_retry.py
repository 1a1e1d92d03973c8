"""What is tried again, how often and when; what a wait costs, and that it survives a restart."""
import collections
import datetime
import email.utils
import sqlite3
import time

import pytest

import harness
from harness import SANITIZED, SLOWER, TEXT, eventually, query, size
from origin import DEAD_HOST, HOSTS


EARLY = 0.05 # the origin notes the time when it has answered, which may be late


def waiting(service, batch, n):
    """Waits until n requests of the batch wait for another attempt; -> the batch."""
    def all_wait():
        now = service.batch(batch["id"])
        return now["request_counts"]["retry_wait"] == n and now
    return eventually(all_wait, 30, f"{n} requests wait")


def attempts_on_disk(service):
    with sqlite3.connect(f"file:{service.data}/batchfetch.db?mode=ro", uri=True) as db:
        return db.execute("SELECT count(*) FROM attempt").fetchone()[0]


def gaps(hits):
    """{uri: [seconds between its requests]}"""
    times = collections.defaultdict(list)
    for hit in hits:
        times[hit.uri].append(hit.time)
    return {uri: [b - a for a, b in zip(at, at[1:])] for uri, at in times.items()}


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
    assert [h.uri.split("?")[0] for h in origin.hits(4)] == [
        "/redirect-to", "/flaky/1/redirected", "/redirect-to", "/flaky/1/redirected"]


# ---- the policy ----

def policy(**more):
    return dict({"max_attempts": 3, "min_backoff_ms": 1, "max_backoff_ms": 5}, **more)


def attempts(results):
    return [r["attempts"] for r in results]


def test_on_status_says_which(service, origin, toxic):
    def urls(token):
        return [origin.url(f"/flaky/9/{token}-{status}?status={status}")
                for status in (404, 503)] + [toxic.url(f"/close?{token}")]
    listed = service.run(urls("listed"), retry=policy(on_status=[404]))
    assert attempts(listed) == [3, 1, 3]
    empty = service.run(urls("empty"), retry=policy(on_status=[]))
    assert attempts(empty) == [1, 1, 3], "what is no status is tried again whatever the list says"
    assert empty[1]["error"]["retryable"] is True, "of its nature, not of this batch"
    omitted = service.run(urls("omitted"), retry=policy())
    assert attempts(omitted) == [1, 3, 3]


def test_which_number_of_attempts_holds(service, origin):
    requests = [{"url": origin.url("/flaky/9/order-a"), "max_attempts": 1},
                {"url": origin.url("/flaky/9/order-b"), "max_attempts": 4},
                {"url": origin.url("/flaky/9/order-c")}]
    results = service.run(requests=requests, defaults={"max_attempts": 2}, retry=policy())
    assert attempts(results) == [1, 4, 2]
    assert attempts(service.run([origin.url("/flaky/9/order-d")], retry=policy())) == [3]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_may_act_twice_is_tried_again_only_where_asked(service, origin, method):
    def run(how, request=(), **settings):
        url = origin.url(f"/flaky/9/unsafe-{method}-{how}")
        return attempts(service.run(requests=[dict({"url": url, "method": method, "body": "x"},
                                                   **dict(request))], **settings))
    assert run("plain", retry=policy()) == [1]
    assert run("dead-host", {"url": f"http://{DEAD_HOST}:9/"}, retry=policy()) == [1]
    assert run("policy", retry=policy(non_idempotent=True)) == [3]
    assert run("request", {"max_attempts": 2}, retry=policy()) == [2]
    assert run("defaults", defaults={"max_attempts": 2}, retry=policy()) == [2]
    assert run("one", {"max_attempts": 1}, retry=policy(non_idempotent=True)) == [1]
    assert len(origin.hits(9)) == 1 + 3 + 2 + 2 + 1
    default, = service.run([origin.url(f"/flaky/9/default-{method}")],
                           defaults={"method": method}, retry=policy())
    assert default["attempts"] == 1
    safe = [{"url": origin.url(f"/flaky/9/safe-{method}-{m}"), "method": m}
            for m in ("GET", "PUT", "DELETE", "HEAD", "OPTIONS")]
    assert attempts(service.run(requests=safe, retry=policy())) == [3] * 5


# ---- when ----
# Status 504: 429 and 503 would pause the host, for all requests to it.

def test_the_wait_is_spread_over_a_growing_span(service, origin):
    n = 40
    results = service.run([origin.url(f"/flaky/9/spread-{i}", HOSTS[i % 8]) for i in range(n)],
                          retry=policy(max_attempts=4, min_backoff_ms=150, max_backoff_ms=400))
    assert attempts(results) == [4] * n
    per_uri = gaps(origin.hits(4 * n))
    assert len(per_uri) == n
    for k, span in enumerate((0.15, 0.3, 0.4)): # doubled, doubled and cut
        waits = sorted(g[k] for g in per_uri.values())
        assert waits[-1] <= span + 0.15 * SLOWER, (span, waits)
        # Full jitter: 40 even draws leave a third of the span empty once in some ten million times.
        assert waits[0] < span / 3, waits
        assert waits[-1] > span * 2 / 3, waits
    for r in results:
        took = (datetime.datetime.fromisoformat(r["completed_at"].replace("Z", "+00:00")).timestamp()
                - origin.first_at()) * 1000
        assert r["timing"]["retry_wait_ms"] <= r["timing"]["total_ms"]
        assert abs(r["timing"]["total_ms"] - took) < 300 * SLOWER


@pytest.mark.bench
def test_a_short_wait_is_kept_to(service, origin):
    results = service.run([origin.url("/flaky/19/short")],
                          retry={"max_attempts": 20, "min_backoff_ms": 1, "max_backoff_ms": 1})
    assert attempts(results) == [20]
    waits = sorted(next(iter(gaps(origin.hits(20)).values())))
    assert waits[9] <= 0.010, waits # of 1 ms each


@pytest.mark.bench
def test_a_retry_starts_when_it_is_due(service, origin):
    service.run([origin.url(f"/flaky/1/due-{i}?status=504&after=1", HOSTS[i]) for i in range(20)],
                retry=policy())
    waits = sorted(g[0] for g in gaps(origin.hits(40)).values())
    assert waits[0] >= 1 - EARLY and waits[10] <= 1.015, waits


def test_retry_after_may_be_a_date(service, origin):
    at = email.utils.formatdate(time.time() + 2, usegmt=True).replace(" ", "%20")
    result, = service.run([origin.url(f"/flaky/1/date?status=504&after={at}")], retry=policy())
    assert result["attempts"] == 2
    wait, = gaps(origin.hits(2))[next(iter(gaps(origin.hits(2))))]
    assert 1 - EARLY <= wait < 2.2 * SLOWER, wait # a date is of whole seconds


@pytest.mark.parametrize("most, least, longest", [(300, 0.3, 2), (0, 0, 0.25)])
def test_retry_after_has_a_ceiling(service, origin, most, least, longest):
    for form in "3600", email.utils.formatdate(time.time() + 3600, usegmt=True).replace(" ", "%20"):
        origin.reset()
        service.run([origin.url(f"/flaky/1/ceiling?status=504&after={form}")],
                    retry=policy(max_retry_after_ms=most))
        (wait,), = gaps(origin.hits(2)).values()
        assert least - EARLY <= wait < longest * SLOWER, (form, wait)


# ---- what survives ----

@pytest.mark.parametrize("kill", [False, True], ids=["sigterm", "kill9"])
def test_attempts_survive_a_restart(start, origin, kill):
    n, after = 300, 3 if SANITIZED else 1  # s: a start with a sanitizer takes longer than one
    service = start()
    batch = service.submit([origin.url(f"/flaky/9/kept-{i}?status=504&after={after}", HOSTS[i % 5])
                            for i in range(n)], limits={"max_per_host": 30}, retry=policy())
    for tries in 1, 2:
        def all_failed(tries=tries):
            return origin.arrivals() == tries * n and \
                service.batch(batch["id"])["request_counts"]["retry_wait"] == n
        eventually(all_failed, 30)
        service.restart(kill=kill)
        now = service.batch(batch["id"])
        assert now["status"] == "in_progress"
        assert now["request_counts"]["retry_wait"] + now["request_counts"]["queued"] + \
            now["request_counts"]["in_flight"] == n
        if tries == 1:
            assert now["request_counts"]["retry_wait"] > 0
    results = service.finish(batch)
    assert attempts(results) == [3] * n
    hits = collections.Counter(h.uri for h in origin.hits(3 * n))
    assert set(hits.values()) == {3}, "none was in flight when it ended: exactly max_attempts"
    assert min(w for g in gaps(origin.hits()).values() for w in g) >= after - EARLY
    created = datetime.datetime.fromisoformat(batch["created_at"].replace("Z", "+00:00"))
    for r in results: # the time while it was down is waiting, too
        ended = datetime.datetime.fromisoformat(r["completed_at"].replace("Z", "+00:00"))
        total = (ended - created).total_seconds() * 1000
        assert abs(r["timing"]["total_ms"] - total) < 300 * SLOWER, r
        assert r["timing"]["retry_wait_ms"] >= 2000 * after
    assert attempts_on_disk(service) == 0


def test_killed_at_any_time_no_attempt_is_lost(start, origin):
    """What was in flight, or not yet written, is tried once more for each kill; all else counts."""
    n, kills, most = size(400, 100), 4, 5
    service = start()
    batch = service.submit([origin.url(f"/flaky/99/any-{i}", HOSTS[i % 5]) for i in range(n)],
                           retry=policy(max_attempts=most, min_backoff_ms=200, max_backoff_ms=400))
    for i in range(kills):
        goal = n * (i + 1)
        eventually(lambda goal=goal: origin.arrivals() >= goal, 30)
        service.restart(kill=True)
    results = service.finish(batch)
    assert attempts(results) == [most] * n
    hits = collections.Counter(h.uri for h in origin.hits())
    assert len(hits) == n and most <= min(hits.values()) and max(hits.values()) <= most + kills
    assert sum(hits.values()) <= n * most + kills * (5 * 16 + 150), "in flight; not yet committed"


def test_a_long_wait_is_no_longer_when_the_clock_was_set_back(start, origin):
    """Due times on disk are of a clock that may since have been set: no wait gets longer by it."""
    service = start()
    batch = service.submit([origin.url(f"/flaky/1/clock-{i}?status=504&after=1") for i in range(5)],
                           retry=policy(max_retry_after_ms=1000))
    waiting(service, batch, 5)
    service.stop()
    with sqlite3.connect(service.data / "batchfetch.db") as db:
        db.execute("UPDATE attempt SET due=due+86400000")
    service.start()
    begin = time.monotonic()
    assert attempts(service.finish(batch)) == [2] * 5
    assert time.monotonic() - begin < 3 * SLOWER


# ---- what it costs ----

@pytest.mark.slow
def test_many_wait_for_long_in_little_memory(start, origin):
    n = size(100_000)
    service = start("--max-per-host", 50)
    text = "".join(origin.url(f"/flaky/99999999/many?status=504&after=3600&n={i}\n", HOSTS[i % 20])
                   for i in range(n))
    ask = query(retry__max_attempts=2, retry__max_retry_after_ms=3_600_000)
    batch = service.post("/v1/batches" + ask, text, {"Content-Type": TEXT}).expect(202).json()
    before = service.status_kb("VmRSS")
    eventually(lambda: service.batch(batch["id"])["request_counts"]["retry_wait"] == n, 60)
    grown = service.status_kb("VmRSS") - before
    assert SANITIZED or grown < 64 * 1024, f"{grown} KiB for {n} that wait"
    other = time.monotonic()
    service.one(origin.url("/bytes/5"))
    assert time.monotonic() - other < 1 * SLOWER
    begin = time.monotonic()
    service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)
    ended = service.wait(batch["id"])
    assert time.monotonic() - begin < 10 * SLOWER
    assert ended["request_counts"]["cancelled"] == n
    page = service.get(f"/v1/batches/{batch['id']}/results?limit=1000").expect(200).json()["data"]
    assert all(r["status"] == "cancelled" and r["attempts"] == 1 and
               r["timing"]["retry_wait_ms"] > 0 for r in page)
    eventually(lambda: attempts_on_disk(service) == 0, 30)


def test_deleting_what_waits_leaves_nothing(service, origin):
    batch = service.submit([origin.url(f"/flaky/9/gone-{i}?status=504&after=50") for i in range(50)],
                           retry=policy())
    waiting(service, batch, 50)
    service.delete(f"/v1/batches/{batch['id']}").expect(204)
    eventually(lambda: attempts_on_disk(service) == 0)
    assert len(origin.hits(50)) == 50


def test_due_retries_of_a_dead_host_hold_back_no_other(start, origin):
    """More of one host are due than the window of a batch takes (2,048, with many batches)."""
    service = start("--max-parallel", 600)
    hold = [service.submit([origin.url(f"/flaky/1/hold-{i}?status=504&after=600")],
                           retry=policy(max_retry_after_ms=600_000))["id"] for i in range(130)]
    n = 3000
    urls = [origin.url(f"/dying/dead-{i}?after={SLOWER}", HOSTS[9]) for i in range(n)]
    batch = service.submit(urls, limits={"max_per_host": 400}, retry=policy())
    waiting(service, batch, n)
    due = time.monotonic() + SLOWER
    live = [origin.url(f"/flaky/1/live-{i}?status=504&after={2 * SLOWER}", HOSTS[i % 5]) for i in range(200)]
    mixed = service.submit(urls=live + [u.replace("dead", "more") for u in urls],
                           limits={"max_per_host": 400}, retry=policy())
    def live_done():
        return service.batch(mixed["id"])["request_counts"]["succeeded"] == len(live)
    eventually(live_done, 20)
    assert time.monotonic() - due < 6 * SLOWER, "they were due 1 s after those of the dead host"
    counts = service.batch(mixed["id"])["request_counts"]
    assert counts["in_flight"] + counts["queued"] + counts["retry_wait"] == n
    for id_ in [batch["id"], mixed["id"], *hold]:
        service.post(f"/v1/batches/{id_}/cancel").expect(202)


def test_a_retry_does_not_wait_until_a_batch_of_very_many_hosts_is_through(start, origin):
    """The hosts keep the batch's window full; many batches make it small."""
    harness.DNS.names.update({f"wide{i}.test": ["127.0.0.1"] for i in range(70)})
    service = start("--max-parallel", 16)
    for i in range(130):
        service.submit([f"http://{DEAD_HOST}:9/{i}"],
                       retry={"max_attempts": 10, "min_backoff_ms": 3600000})  # 0 to 1 h: one may be soon
    eventually(lambda: attempts_on_disk(service) == 130, 30, "all wait")
    urls = [origin.url(f"/flaky/1/wide-{i}") for i in range(5)]
    urls += [f"http://wide{i % 70}.test:{origin.port}/bytes/3?{i}" for i in range(size(42000))]
    batch = service.submit(urls, retry={"max_attempts": 2, "min_backoff_ms": 1})
    results = service.finish(batch, include="")
    assert {r["status"] for r in results} == {"succeeded"}
    waited = max(r["timing"]["retry_wait_ms"] for r in results)
    whole = max(r["timing"]["total_ms"] for r in results)
    print(f"waited {waited} of {whole} ms")
    assert waited < whole / 2, (waited, whole)
