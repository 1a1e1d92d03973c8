"""SIGTERM and kill -9 in the middle of work: nothing accepted is lost, nothing is there twice, and
what was finished is not fetched again."""
import collections
import json
import threading
import time

import pytest

import harness
from harness import check_complete, check_counts, eventually, size
from origin import HOSTS, content

N = size(2000, 200)


def half_done(service, batch, n):
    return eventually(lambda: service.batch(batch["id"])["request_counts"]["succeeded"] >= n and
                      service.batch(batch["id"]))


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["sigterm", "kill9"])
def test_a_batch_goes_on_where_it_was(start, origin, kill):
    service = start("--max-per-host", 10)
    batch = service.submit([origin.url(f"/slow-body/1?t=re{i}", HOSTS[i % 5]) for i in range(N)],
                           name="survivor", metadata={"a": "b"},
                           limits={"max_parallel": 40})
    half_done(service, batch, N // 4)
    before = service.results(batch["id"])
    assert N // 4 <= len(before) < N
    service.restart(kill=kill)
    now = service.batch(batch["id"])
    assert now["status"] in ("queued", "in_progress") and now["started_at"]
    assert now["request_counts"]["succeeded"] >= len(before)
    for member in ("name", "metadata", "limits", "created_at", "max_redirects", "retry"):
        assert now[member] == batch[member], member
    results = service.finish(batch)
    assert all(r["status"] == "succeeded" for r in results)
    # What was read before is unchanged, and stands first in the order of completion.
    assert service.results(batch["id"])[:len(before)] == before
    # Only what was in flight at the cut may be fetched twice.
    hits = collections.Counter(h.uri for h in origin.hits(N))
    assert set(hits) == {f"/slow-body/1?t=re{i}" for i in range(N)}
    finished = {r["url"].split(str(origin.port))[1] for r in before}
    assert all(hits[uri] == 1 for uri in finished), "a finished request was fetched again"
    # With kill -9 also what was received and not yet committed.
    assert sum(n - 1 for n in hits.values()) <= (200 if kill else 50)
    assert max(hits.values()) <= 2


@pytest.mark.slow
def test_many_crashes_in_a_row_lose_nothing(start, origin):
    """Submits and is killed, again and again; a POST without an answer is whole or absent."""
    service = start("--max-per-host", 20)
    accepted, unknown = {}, []
    for round_ in range(size(8, 3)):
        stop = threading.Event()

        def submit(service=service, round_=round_, stop=stop):
            n = 0
            while not stop.is_set():
                name = f"crash-{round_}-{n}"
                urls = [origin.url(f"/bytes/20?t={name}-{i}", HOSTS[i % 3]) for i in range(20)]
                n += 1
                unknown.append(name)
                try:
                    answer = service.client().request("POST", "/v1/batches",
                                                      {"urls": urls, "name": name})
                except OSError:
                    return
                if answer.status == 202:
                    accepted[answer.json()["id"]] = name
                    unknown.remove(name)

        thread = threading.Thread(target=submit)
        thread.start()
        goal = len(accepted) + 3
        eventually(lambda: len(accepted) >= goal)
        time.sleep(0.013 * round_)  # another moment each time
        service.kill()
        stop.set()
        thread.join()
        service.start()
    for batch_id, name in accepted.items():
        results = service.finish({"id": batch_id}, include="body")
        assert len(results) == 20
        for i, r in enumerate(results):
            assert r["status"] == "succeeded", r
            assert r["body"].encode() == content(20, f"{name}-{i}")
    listed = service.get("/v1/batches?limit=1000").json()["data"]
    for batch in listed:
        check_counts(batch)
        assert batch["request_counts"]["total"] == 20
        assert batch["id"] in accepted or batch["name"] in unknown
    assert len(listed) <= len(accepted) + len(unknown)


def test_ended_batches_results_and_bodies_survive(start, origin):
    service = start()
    batch = service.submit([origin.url(f"/bytes/{n}?t=k{n}") for n in (0, 10, 100000, 2000000)])
    service.wait(batch["id"])
    path = f"/v1/batches/{batch['id']}"
    one, results = service.get(path), service.results(batch["id"], include="headers,body")
    for kill in (False, True):
        service.restart(kill=kill)
        again = service.get(path)
        assert again.json() == one.json()
        assert service.results(batch["id"], include="headers,body") == results


def test_a_cursor_is_good_over_a_restart(start, origin):
    service = start()
    batch = service.submit([origin.url(f"/bytes/5?{i}") for i in range(50)])
    service.wait(batch["id"])
    path = f"/v1/batches/{batch['id']}/results"
    page = service.get(path + "?limit=20").json()
    service.restart(kill=True)
    rest = service.get(path + "?after=" + page["next"]).expect(200).json()
    check_complete(service.batch(batch["id"]), page["data"] + rest["data"])


@pytest.mark.parametrize("kill", [False, True])
def test_a_cancel_that_was_answered_holds_over_a_restart(start, origin, kill):
    service = start("--max-per-host", 2)
    batch = service.submit([origin.url(f"/delay/0.2?{i}") for i in range(5000)])
    eventually(lambda: origin.active() == 2)
    service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)
    service.restart(kill=kill)
    eventually(lambda: origin.active() == 0)
    arrived = origin.arrivals()
    results = service.finish(batch)
    assert sum(r["status"] == "cancelled" for r in results) > 4900
    assert service.batch(batch["id"])["status"] == "cancelled"
    assert origin.arrivals() == arrived, "a cancelled batch went on"


def test_a_delete_that_was_answered_holds_over_a_restart(start, origin):
    service = start()
    batch = service.submit([origin.url(f"/bytes/5?{i}") for i in range(3000)])
    service.delete(f"/v1/batches/{batch['id']}").expect(204)
    service.restart(kill=True)
    service.get(f"/v1/batches/{batch['id']}").problem(404, "not-found")
    assert service.get("/v1/batches").json()["data"] == []


def test_an_upload_cut_by_a_crash_leaves_nothing(start, origin):
    service = start()
    with service.connect() as sock:
        sock.sendall(b"POST /v1/batches HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: text/plain\r\n"
                     b"Content-Length: 100000000\r\n\r\n" %
                     (service.address[0].encode(), service.address[1]))
        line = origin.url("/bytes/1").encode() + b"\n"
        for _ in range(300):
            sock.sendall(line * 1000)
        service.kill()
    service.start()
    assert service.get("/v1/batches").json()["data"] == []
    assert service.one(origin.url("/bytes/1"))["status"] == "succeeded"
    assert len(origin.hits(1)) == 1


def test_sigterm_ends_waits_and_streams_in_time(start, origin):
    service = start()
    # nginx may miss that a client is gone if it goes at once, as after the last start here: what it
    # then sleeps on must end within the time that the next test grants.
    batch = service.submit([origin.url("/delay/12")])
    outcome = []

    def wait():
        try:
            path = f"/v1/batches/{batch['id']}?wait=60"
            outcome.append(service.client().request("GET", path).status)
        except OSError:
            outcome.append("closed")

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for t in threads:
        t.start()
    eventually(lambda: origin.active() == 1)
    began = time.monotonic()
    service.stop()
    assert time.monotonic() - began < 8 * harness.SLOWER
    for t in threads:
        t.join()
    assert len(outcome) == 5 and set(outcome) <= {200, 503, "closed"}
    service.start()
    service.delete(f"/v1/batches/{batch['id']}").expect(204)


def test_a_second_process_on_the_same_data_is_refused(start, origin):
    service = start()
    other = harness.Service(service.dir)
    with pytest.raises(AssertionError, match="first line on stdout: ''"):
        other.start()
    assert other.process.wait(10) != 0
    other._gone()
    assert service.one(origin.url("/bytes/1"))["status"] == "succeeded"


def test_the_data_is_for_its_owner_only(start, origin):
    service = start()
    service.one(origin.url("/bytes/1"))
    for path in [service.data, *service.data.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, (path, oct(path.stat().st_mode))


def test_restarts_are_quick_with_much_queued(start, origin):
    service = start("--max-per-host", 1, "--max-parallel", 1)
    total = size(200000)
    body = "\n".join(origin.url(f"/delay/60?{i}", HOSTS[i % 50]) for i in range(total))
    answer = service.post("/v1/batches", body, {"Content-Type": harness.TEXT}, keep=0).expect(202)
    batch = json.loads(answer.body)
    assert batch["request_counts"]["total"] == total
    began = time.monotonic()
    service.restart(kill=True)
    assert time.monotonic() - began < 5 * harness.SLOWER
    assert service.batch(batch["id"])["request_counts"]["total"] == total
    service.delete(f"/v1/batches/{batch['id']}").expect(204)
