"""Connections and names under load: what ends, hangs or is refused beside a request is never the
reason for which it fails."""
import collections
import time

import harness
from harness import SLOWER, eventually, size
from origin import HOSTS
from toxic import Backlogged, Dns


def all_succeeded_at_once(results):
    assert {(r["status"], r["attempts"]) for r in results} == {("succeeded", 1)}, \
        [r for r in results if r["status"] != "succeeded" or r["attempts"] != 1][:3]


# ---- connections that end ----


def test_connections_that_the_origin_closes_while_they_wait(start, origin):
    """Each of many may end in the very moment in which a request goes out on it."""
    service = start("--max-per-host", 50)
    n = size(10000)
    urls = [origin.brief(f"/delay/0.00{i % 5}?{i}", "idle", HOSTS[i % 3]) for i in range(n)]
    batch = service.submit(urls, limits={"rate_per_host": 1500})
    all_succeeded_at_once(service.finish(batch, include=""))


# ---- names that nobody answers for ----

def quick_ones(service, origin, n):
    """Fetches n quick URLs, by names and addresses; -> seconds."""
    urls = [origin.url(f"/bytes/50?{i}", ("good.test", "two.test", *HOSTS[2:6])[i % 6])
            for i in range(n)]
    begin = time.monotonic()
    all_succeeded_at_once(service.run(urls, include=""))
    return time.monotonic() - begin


def post_lines(service, lines):
    answer = service.post("/v1/batches", "\n".join(lines), {"Content-Type": harness.TEXT})
    return answer.expect(202).json()


class ManyNames(Dns):
    """Nothing is ever said about what ends in hang.test."""

    def _answer(self, data):
        answer = super()._answer(data)
        return None if self.asked[-1].endswith("hang.test") else answer


def test_names_that_nobody_answers_for_slow_no_other(start, origin):
    dns = ManyNames()
    try:
        service = start("--dns-servers", f"127.0.0.1:{dns.port}", "--fetchers", 1)
        n, names = size(3000), size(4000)
        alone = min(quick_ones(service, origin, n) for _ in range(2))
        batch = post_lines(service, [f"http://n{i % names}.hang.test/{i}"
                                     for i in range(names * 5)])
        eventually(lambda: any("hang" in name for name in dns.asked), what="questions")
        # its question stands in line behind theirs, for longer than it may take
        new = service.one(f"http://mixed.test:{origin.port}/bytes/5",
                          connect_timeout_ms=500 * SLOWER)
        all_succeeded_at_once([new])
        beside = quick_ones(service, origin, n)
        service.delete(f"/v1/batches/{batch['id']}").expect(204)
        assert beside < alone * 1.5 + 0.25 * SLOWER, (beside, alone)
    finally:
        dns.stop()


# ---- connections that come to nothing ----

def test_connections_that_come_to_nothing_are_not_counted_for_ever(start):
    """When connect(2) takes too long libcurl closes the socket without a word, and another one may have
    its number before anybody looks. What is counted too much is missing in the descriptors' budget for
    ever."""
    service = start("--fetchers", 1, "--max-per-host", 300)
    silent = Backlogged()
    try:
        slow = [{"url": f"http://127.0.0.1:{silent.port}/{i}", "connect_timeout_ms": 200 + i} for i in range(300)]
        quick = [{"url": f"http://127.0.{i % 50}.9:9/{i}"} for i in range(size(3000))]
        batch = service.submit(requests=slow + quick, limits={"rate_per_host": 100},
                               defaults={"max_attempts": 1})
        results = service.finish(batch, include="")
    finally:
        silent.stop()
    codes = collections.Counter(r["error"]["code"] for r in results)
    assert codes == {"timeout": len(slow), "connect": len(quick)}
    for i, r in enumerate(results[:len(slow)]):  # libcurl forgets one whose neighbour is 1 ms before it
        assert 199 + i <= r["timing"]["connect_ms"] < 2000 * SLOWER, r
    eventually(lambda: service.metric("batchfetch_connections_open") == 0, what="a right count")
