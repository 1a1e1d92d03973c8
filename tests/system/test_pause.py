"""Pause and resume: nothing is begun meanwhile, nothing is fetched twice, and it survives restarts."""
import collections
import concurrent.futures
import threading
import time

import pytest

from harness import check_complete, eventually, size
from origin import HOSTS

N = size(3000, 300)


def steer(service, batch, verb, status=200):
    answer = service.post(f"/v1/batches/{batch['id']}/{verb}").expect(status)
    return answer.json()


def counts(service, batch):
    return service.batch(batch["id"])["request_counts"]


def landed(service, batch):
    """Waits until nothing of a paused batch is under way."""
    return eventually(lambda: counts(service, batch)["in_flight"] == 0 and counts(service, batch))


def hits_of(origin, n):
    return collections.Counter(h.uri for h in origin.hits(n))


def test_nothing_begins_while_a_batch_is_paused(start, origin):
    service = start("--max-per-host", 5)
    batch = service.submit([origin.url(f"/delay/0.05?{i}", HOSTS[i % 3]) for i in range(N)])
    other = service.submit([origin.url("/delay/0.05?other")] * 3)
    eventually(lambda: counts(service, batch)["succeeded"] > 20)
    now = steer(service, batch, "pause")
    assert now["status"] == "paused" and now["eta_s"] is None
    assert now["request_counts"]["in_flight"] <= 15
    still = landed(service, batch)
    service.finish(other)  # others go on
    arrived = origin.arrivals()
    time.sleep(0.3)
    assert origin.arrivals() == arrived, "something was begun while the batch was paused"
    assert counts(service, batch) == still and still["queued"] > 0
    assert [b["id"] for b in service.get("/v1/batches?status=paused").json()["data"]] == [
        batch["id"]]
    assert steer(service, batch, "pause")["status"] == "paused"
    assert steer(service, batch, "resume")["status"] == "in_progress"
    assert steer(service, batch, "resume")["status"] == "in_progress"
    eventually(lambda: counts(service, batch)["succeeded"] > still["succeeded"])
    service.finish(batch)
    assert set(hits_of(origin, N + 3).values()) == {1, 3}


def test_paused_and_resumed_again_and_again_fetches_each_url_once(start, origin):
    """Redirects over hosts, retries and slow answers are under way whenever it is paused."""
    service = start("--max-per-host", size(20, 2), "--fetchers", 2)
    urls, want = origin.mixed(N, "p")
    batch = service.submit(urls, retry={"max_attempts": 3, "min_backoff_ms": 20,
                                        "max_backoff_ms": 60})
    rounds = 0
    while service.batch(batch["id"])["status"] != "completed":
        verb = ("pause", "resume", "resume", "pause", "pause", "resume")[rounds % 6]
        answer = service.post(f"/v1/batches/{batch['id']}/{verb}")
        if answer.status != 409:
            answer.expect(200)
        time.sleep((rounds * 7 % 50) / 1000)
        rounds += 1
        assert rounds < 2000
    assert rounds > 6
    results = service.finish(batch)
    assert all(r["status"] == "succeeded" for r in results)
    results.sort(key=lambda r: r["index"])
    for r in results:
        assert r["attempts"] == (2 if r["index"] % 5 == 1 else 1), r
    hits = hits_of(origin, sum(r["attempts"] + len(r["redirects"]) for r in results))
    assert hits == want, "fetched more or less often than once: " + str(
        {uri: (hits[uri], want[uri]) for uri in set(hits) | set(want)
         if hits[uri] != want[uri]})[:500]


def test_a_batch_resumes_before_its_slow_transfers_end(start, origin):
    service = start("--max-per-host", 4)
    batch = service.submit([origin.url(f"/delay/{3 if i < 2 else 0.01}?s{i}") for i in range(50)])
    eventually(lambda: counts(service, batch)["succeeded"] >= 5)
    steer(service, batch, "pause")
    start_at = time.monotonic()
    steer(service, batch, "resume")
    eventually(lambda: counts(service, batch)["succeeded"] == 48)
    assert time.monotonic() - start_at < 2, "waited for transfers of before the pause"
    service.finish(batch)
    assert set(hits_of(origin, 50).values()) == {1}


@pytest.mark.parametrize("kill", [False, True], ids=["sigterm", "kill9"])
def test_a_pause_survives_a_restart(start, origin, kill):
    service = start("--max-per-host", 10)
    urls = [origin.url(f"/delay/0.02?r{i}", HOSTS[i % 3]) for i in range(200)]
    urls += [origin.url(f"/flaky/1/r{i}") for i in range(20)]
    batch = service.submit(urls, retry={"max_attempts": 2, "min_backoff_ms": 3000,
                                        "max_backoff_ms": 3000})
    eventually(lambda: counts(service, batch)["retry_wait"] > 0)
    steer(service, batch, "pause")
    still = landed(service, batch)
    service.restart(kill=kill)
    arrived = origin.arrivals()
    assert service.batch(batch["id"])["status"] == "paused"
    assert counts(service, batch) == still
    time.sleep(0.3)
    assert origin.arrivals() == arrived
    service.restart("--max-per-host", "50", kill=kill)  # twice in a row
    assert service.batch(batch["id"])["status"] == "paused"
    steer(service, batch, "resume")
    results = service.finish(batch)
    assert all(r["status"] == "succeeded" for r in results)
    assert {n for uri, n in hits_of(origin, 240).items()} == {1, 2}


def test_a_paused_batch_can_be_cancelled_and_deleted(start, origin):
    service = start("--max-per-host", 5)
    first = service.submit([origin.url(f"/delay/0.05?c{i}") for i in range(500)])
    second = service.submit([origin.url(f"/delay/0.05?d{i}") for i in range(500)])
    for batch in (first, second):
        steer(service, batch, "pause")
    assert service.post(f"/v1/batches/{first['id']}/cancel").expect(202)
    ended = service.wait(first["id"])
    assert ended["status"] == "cancelled"
    check_complete(ended, service.results(first["id"]))
    steer(service, first, "resume", 409)
    service.delete(f"/v1/batches/{second['id']}").expect(204)
    steer(service, second, "resume", 404)


def test_pausing_before_anything_began_and_waiting_for_the_end(start, origin):
    service = start("--max-parallel", 1)
    slow = service.submit([origin.url("/delay/1?slow")])
    eventually(lambda: counts(service, slow)["in_flight"] == 1)
    batch = service.submit([origin.url(f"/bytes/10?w{i}") for i in range(5)])
    assert steer(service, batch, "pause")["status"] == "paused"
    service.finish(slow)
    ended = []
    waiter = threading.Thread(target=lambda: ended.append(service.wait(batch["id"])))
    waiter.start()
    time.sleep(0.2)
    assert not ended and counts(service, batch)["queued"] == 5
    steer(service, batch, "resume")
    waiter.join(20)
    assert ended and ended[0]["status"] == "completed"


def test_a_batch_that_ends_while_it_is_being_paused(start, origin):
    """What the fetchers then tell of it is of a batch that is over."""
    service = start("--max-per-host", 4)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for i in range(size(40)):
            urls = [origin.url(f"/delay/0.02?{i}-{n}", HOSTS[n % 5]) for n in range(300)]
            path = f"/v1/batches/{service.submit(urls)['id']}"
            verbs = [pool.submit(service.post, f"{path}/{verb}")
                     for verb in ("pause", "cancel", "pause", "cancel")]
            verbs.append(pool.submit(service.delete, path))
            for answer in [v.result() for v in verbs]:
                assert answer.status in (200, 202, 204, 404, 409), answer
    assert service.process.poll() is None
    assert service.run([origin.url("/bytes/3")])[0]["status"] == "succeeded"
