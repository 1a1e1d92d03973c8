"""Who gets how much, and when: rates, priorities, small batches beside large ones, dead hosts and
Retry-After, proved by the times at which the origin saw the requests."""
import time

import pytest

from harness import SLOWER, TEXT, query, size
from origin import HOSTS


def urls(origin, n, hosts, path):
    return [origin.url(f"{path}?t={i}", hosts[i % len(hosts)]) for i in range(n)]


def post_lines(service, lines, **settings):
    return service.post("/v1/batches" + query(**settings), "\n".join(lines),
                        {"Content-Type": TEXT}).expect(202).json()


def cancel(service, batch):
    service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)


def times(hits, host):
    return sorted(h.time for h in hits if h.host == host)


def assert_rate(at, rate, least=1):
    """No window holds more than its time allows. 0.06 s: what the way to the origin may differ."""
    assert len(at) >= least
    for i in range(len(at)):
        for j in range(i + 1, len(at)):
            assert j - i <= 1 + (at[j] - at[i] + 0.06) * rate, (i, j, at[j] - at[i])


# ---- rates ----

def test_a_batch_keeps_its_rate_at_each_host(start, origin):
    service = start()
    begin = time.monotonic()
    service.finish(service.submit(urls(origin, 30, HOSTS[:2], "/bytes/9"),
                                  limits={"rate_per_host": 20}))
    took = time.monotonic() - begin
    hits = origin.hits(30)
    for host in HOSTS[:2]:
        assert_rate(times(hits, host), 20, least=15)
    assert 0.65 < took < 1.5 * SLOWER  # 14 spaces of 50 ms, at both hosts at once


def test_the_wait_for_a_rate_is_limit_wait_and_no_timeout(start, origin):
    service = start()
    results = service.finish(service.submit(urls(origin, 4, HOSTS[:1], "/bytes/9"),
                                            limits={"rate_per_host": 4},
                                            defaults={"timeout_ms": 200 * SLOWER}))
    assert all(r["status"] == "succeeded" for r in results)
    assert max(r["timing"]["limit_wait_ms"] for r in results) >= 700


def test_the_rate_of_a_host_holds_over_batches_redirects_and_attempts(start, origin):
    service = start("--rate-per-host", 20)
    target = HOSTS[30]
    batches = [service.submit(urls(origin, 6, [target], "/bytes/9")),
               service.submit([origin.url(f"/redirect-to?url={origin.url('/bytes/3', target)}",
                                          HOSTS[i]) for i in range(6)]),
               service.submit(requests=[{"url": origin.url(f"/flaky/1/rate{i}", target),
                                         "max_attempts": 2} for i in range(4)])]
    for batch in batches:
        assert all(r["status"] == "succeeded" for r in service.finish(batch))
    assert_rate(times(origin.hits(6 + 12 + 8), target), 20, least=6 + 6 + 8)


def test_a_rate_outlives_the_queue(start, origin):
    """The next request of the batch to this host comes by a redirect, when nothing else is left
    there."""
    service = start()
    back = origin.url("/redirect-to?url=" + origin.url("/bytes/3", HOSTS[1]), HOSTS[0])
    service.finish(service.submit([origin.url("/bytes/3", HOSTS[1]), back],
                                  limits={"rate_per_host": 1}))
    at = times(origin.hits(3), HOSTS[1])
    assert len(at) == 2 and at[1] - at[0] > 0.9


# ---- shares ----

def test_each_step_of_priority_doubles_the_share(start, origin):
    # one fetcher: between several it is the sum of their batches' weights that counts
    service = start("--max-parallel", 20, "--max-per-host", 20, "--fetchers", 1)
    low = post_lines(service, urls(origin, 1500, HOSTS[10:20], "/delay/0.02"), priority=5)
    high = post_lines(service, urls(origin, 800, HOSTS[20:30], "/delay/0.02"), priority=7)
    service.wait(high["id"])
    cancel(service, low)
    hits = sorted(origin.hits(1000))
    of_high = [i for i, h in enumerate(hits) if h.host in HOSTS[20:30]]
    both = hits[of_high[100]:of_high[750]]  # neither the beginning nor the end
    share = sum(h.host in HOSTS[20:30] for h in both) / sum(h.host in HOSTS[10:20] for h in both)
    assert 3.2 < share < 4.8


@pytest.mark.parametrize("where", ["same hosts", "another host"])
def test_ten_urls_beside_very_many(start, origin, where):
    """On the same hosts, whose limits bind, and on a host of their own while the global limit
    binds: at most twice the time that they take alone."""
    service = start("--max-parallel", 40, "--max-per-host", 8)
    hosts = HOSTS[:5] if where == "same hosts" else HOSTS[49:]
    many = HOSTS[:5] if where == "same hosts" else HOSTS[:40]

    def few(i):
        begin = time.monotonic()
        service.finish(service.submit(urls(origin, 10, hosts, f"/delay/0.4?n={i}")))
        return time.monotonic() - begin

    alone = max(few(0), few(1))
    lines = [f"http://{many[i % len(many)]}:{origin.port}/delay/0.4" for i in range(size(200000))]
    large = post_lines(service, lines)
    origin_busy(origin, 40)
    beside = sorted(few(2 + i) for i in range(3))[1]
    assert service.batch(large["id"])["request_counts"]["queued"] > size(200000) / 2
    cancel(service, large)
    # 0.25 s: the machine is busy too, and not only with this
    assert beside <= 2 * alone + 0.25 * SLOWER, (beside, alone)


def origin_busy(origin, n):
    end = time.monotonic() + 20 * SLOWER
    while origin.active() < n:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_dead_host_with_very_many_urls_slows_no_other(start, origin, toxic):
    service = start("--max-parallel", 40, "--max-per-host", 8)
    n = size(100000)
    # the quick URLs stand behind all of them
    lines = [toxic.url(f"/silent?{i}") for i in range(n)] + urls(origin, 400, HOSTS[1:3],
                                                                 "/delay/0.02")
    batch = post_lines(service, lines)
    begin = time.monotonic()
    hits = origin.hits(400)
    assert len(hits) == 400
    took = max(h.time for h in hits) - min(h.time for h in hits)
    assert took < 400 / 16 * 0.02 * 2 + 1 * SLOWER and time.monotonic() - begin < 10 * SLOWER
    cancel(service, batch)


# ---- Retry-After ----

def test_retry_after_pauses_its_host_for_all_batches_and_no_other(start, origin):
    service = start("--max-parallel", 1)
    first = service.one(origin.url("/flaky/1/pause?after=1", HOSTS[3]))
    assert first["http_status"] == 503 and first["attempts"] == 1
    told = origin.hits(1)[0].time
    paused = service.submit(urls(origin, 3, HOSTS[3:4], "/bytes/5"))
    service.finish(service.submit(urls(origin, 20, HOSTS[4:6], "/bytes/5")))
    assert all(r["status"] == "succeeded" and r["timing"]["limit_wait_ms"] > 500
               for r in service.finish(paused))
    hits = origin.hits(24)
    assert times(hits, HOSTS[3])[1] - told > 0.95
    assert max(times(hits, HOSTS[4]) + times(hits, HOSTS[5])) - told < 0.9 * SLOWER


@pytest.mark.parametrize("status, after, paused", [(429, "1", True), (503, "0", False),
                                                   (404, "1", False)])
def test_which_answers_pause_a_host(start, origin, status, after, paused):
    service = start()
    service.one(origin.url(f"/flaky/1/w{status}?after={after}&status={status}", HOSTS[6]))
    result = service.one(origin.url("/bytes/5", HOSTS[6]))
    assert (result["timing"]["limit_wait_ms"] > 800) == paused


def test_a_pause_is_no_longer_than_the_batch_allows(start, origin):
    service = start()
    service.finish(service.submit([origin.url("/flaky/1/cap?after=3000", HOSTS[7])],
                                  retry={"max_attempts": 1, "max_retry_after_ms": 1000}))
    result = service.one(origin.url("/bytes/5", HOSTS[7]))
    assert 500 < result["timing"]["limit_wait_ms"] < 1100 * SLOWER
