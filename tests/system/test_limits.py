"""The limits, as the origin saw them: never more at once than allowed, and (where there is enough
to do) not fewer. Every peak is exact: see origin/origin.lua."""
import threading

import pytest

from harness import SLOWER
from origin import HOSTS


def urls(origin, n, hosts, path="/delay/0.1"):
    return [origin.url(f"{path}?t={i}", HOSTS[i % hosts]) for i in range(n)]


def test_the_global_limit_holds_over_all_hosts_and_batches(start, origin):
    service = start("--max-parallel", 7, "--max-per-host", 5)
    batches = [service.submit(urls(origin, 60, 10)) for _ in range(2)]
    for batch in batches:
        service.finish(batch)
    assert origin.peaks()["*"] == 7
    assert len(origin.hits(120)) == 120


@pytest.mark.parametrize("fetchers", [1, 2, 5])
def test_a_global_limit_of_one_is_one_whatever_the_threads(start, origin, fetchers):
    service = start("--max-parallel", 1, "--fetchers", fetchers)
    service.run(urls(origin, 40, 20, "/delay/0.01"))
    assert origin.peaks()["*"] == 1


def test_the_limit_per_host_holds_and_is_used(start, origin):
    service = start("--max-per-host", 3)
    service.run(urls(origin, 60, 4))
    peaks = origin.peaks()
    assert {peaks[h] for h in HOSTS[:4]} == {3}
    assert peaks["*"] == 12


def test_two_batches_share_the_limit_of_a_host(start, origin):
    service = start("--max-per-host", 4)
    batches = [service.submit(urls(origin, 30, 1)) for _ in range(2)]
    for batch in batches:
        service.finish(batch)
    assert origin.peaks()[HOSTS[0]] == 4


def test_one_host_by_several_names_and_ports_is_limited_by_name(start, origin):
    """The limit is for a host name; its spellings are one."""
    service = start("--max-per-host", 2)
    port = origin.port
    mixed = [f"http://{name}:{port}/delay/0.05?t={i}" for i in range(8)
             for name in ("localhost", "LOCALHOST", "localhost.")]
    service.run(mixed)
    assert max(origin.peaks().get(h, 0) for h in ("localhost", "localhost.")) <= 2
    assert origin.peaks()["*"] == 2


def test_max_parallel_of_a_batch_holds_for_it_alone(start, origin):
    service = start("--max-per-host", 100)
    a = service.submit(urls(origin, 40, 5), limits={"max_parallel": 6})
    service.finish(a)
    assert origin.peaks()["*"] == 6
    origin.reset()
    a = service.submit(urls(origin, 60, 5), limits={"max_parallel": 5})
    b = service.submit(urls(origin, 60, 5), limits={"max_parallel": 3})
    service.finish(a)
    service.finish(b)
    assert origin.peaks()["*"] == 8


def test_max_per_host_of_a_batch_holds_for_it_alone(start, origin):
    service = start("--max-per-host", 100)
    batch = service.submit(urls(origin, 40, 4), limits={"max_per_host": 2})
    service.finish(batch)
    peaks = origin.peaks()
    assert {peaks[h] for h in HOSTS[:4]} == {2} and peaks["*"] == 8


def test_the_smaller_of_the_limits_wins(start, origin):
    service = start("--max-per-host", 4)
    service.finish(service.submit(urls(origin, 30, 2), limits={"max_per_host": 50,
                                                               "max_parallel": 50}))
    peaks = origin.peaks()
    assert {peaks[h] for h in HOSTS[:2]} == {4}


def test_the_default_limit_per_host_is_16(start, origin):
    service = start()
    service.run(urls(origin, 80, 1))
    assert origin.peaks()[HOSTS[0]] == 16


def test_redirects_to_another_host_count_at_that_host(start, origin):
    """40 URLs on 20 hosts all lead to one host that allows 2."""
    service = start("--max-per-host", 2)
    target = origin.url("/delay/0.05", HOSTS[49])
    results = service.run([origin.url(f"/redirect-to?url={target}?t={i}", HOSTS[i % 20])
                           for i in range(40)])
    assert all(r["status"] == "succeeded" and r["final_url"].startswith(target) for r in results)
    peaks = origin.peaks()
    assert peaks[HOSTS[49]] == 2
    assert all(n <= 2 for host, n in peaks.items() if host != "*")


def test_redirects_hold_the_global_and_the_batch_limit(start, origin):
    service = start("--max-parallel", 5, "--max-per-host", 5)
    target = origin.url("/delay/0.03", HOSTS[49])
    loops = [origin.url(f"/redirect-to?url={target}", HOSTS[i % 20]) for i in range(60)]
    a = service.submit(loops, limits={"max_parallel": 3})
    b = service.submit(loops)
    service.finish(a)
    service.finish(b)
    assert origin.peaks()["*"] <= 5


def test_redirects_in_a_circle_of_hosts_do_not_lock_each_other(start, origin):
    """Every URL holds its own host and wants the next one, with one slot each."""
    service = start("--max-per-host", 1)

    def circle(i, hops):
        url = origin.url("/bytes/3", HOSTS[(i + hops) % 5])
        for k in range(hops - 1, -1, -1):
            from_host = HOSTS[(i + k) % 5]
            url = origin.url("/redirect-to?url=" + url.replace("%", "%25").replace("?", "%3F")
                             .replace("&", "%26"), from_host)
        return url

    results = service.run([circle(i, 4) for i in range(50)])
    assert all(r["status"] == "succeeded" and len(r["redirects"]) == 4 for r in results)
    assert all(n == 1 for host, n in origin.peaks().items() if host != "*")


def test_failures_give_their_slots_back(start, origin, toxic):
    """More failures of each kind than there are slots, then good URLs."""
    service = start("--max-parallel", 4, "--max-per-host", 4)
    bad = [toxic.url("/close"), toxic.url("/rst"), toxic.url("/bad-chunk"), toxic.url("/short"),
           "http://127.0.0.77:9/", "http://no-such-name.invalid/", origin.url("/status/500"),
           origin.url("/redirect-to?url=file:///etc/passwd"), origin.url("/loop")]
    results = service.run([u for u in bad for _ in range(6)] + urls(origin, 12, 3),
                          defaults={"timeout_ms": 5000})
    assert [r["status"] for r in results[-12:]] == ["succeeded"] * 12
    assert all(r["status"] == "failed" for r in results[:-12])
    origin.reset()
    service.run(urls(origin, 20, 2, "/delay/0.2"))
    assert origin.peaks()["*"] == 4, "slots were lost"


def test_a_small_batch_does_not_wait_for_a_large_one(start, origin):
    service = start("--max-parallel", 4, "--max-per-host", 4)
    large = service.submit(urls(origin, 600, 2, "/delay/0.05"))
    small = service.submit(urls(origin, 4, 1, "/delay/0.05"))
    service.finish(small)
    left = service.batch(large["id"])["request_counts"]
    assert left["succeeded"] < 300, "the small batch waited for the large one"
    service.post(f"/v1/batches/{large['id']}/cancel").expect(202)
    service.wait(large["id"])


def test_a_slow_host_does_not_hold_up_the_others(start, origin):
    """Thousands of URLs of a slow host stand before those of a quick one, in the same batch."""
    service = start("--max-per-host", 2)
    slow = [origin.url(f"/delay/5?t={i}", HOSTS[0]) for i in range(3000)]
    quick = [origin.url(f"/bytes/10?t={i}", HOSTS[1]) for i in range(100)]
    batch = service.submit(slow + quick)
    done = threading.Event()

    def poll():
        while not done.is_set():
            if service.batch(batch["id"])["request_counts"]["succeeded"] >= 100:
                done.set()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    assert done.wait(10 * SLOWER), "the quick host's URLs waited"
    done.set()
    thread.join()
    service.delete(f"/v1/batches/{batch['id']}").expect(204)
