"""A batch from outside: status while it runs, waiting, listing, cancelling, deleting."""
import threading
import time

import pytest

from harness import SLOWER, check_complete, check_counts, eventually, query, size
from origin import HOSTS, DEAD_HOST


def test_counts_sum_to_the_total_at_every_moment(service, origin):
    urls = [origin.url("/flaky/1/" + f"sum{i}" if i % 10 == 0 else
                       f"/redirect/1?{i}" if i % 7 == 0 else f"/delay/0.0{i % 5}", HOSTS[i % 10])
            if i % 13 else f"http://{DEAD_HOST}:9/" for i in range(600)]
    batch = service.submit(urls, defaults={"max_attempts": 2})
    seen, last = set(), -1
    while True:
        now = service.batch(batch["id"])  # checks the sum
        counts = now["request_counts"]
        assert counts["total"] == 600
        done = counts["succeeded"] + counts["failed"]
        assert done >= last, "finished requests became fewer"
        last = done
        seen.add(now["status"])
        if now["status"] == "completed":
            break
        assert now["ended_at"] is None
        if counts["in_flight"]:
            assert now["status"] == "in_progress" and now["started_at"]
    assert seen <= {"queued", "in_progress", "completed"} and "in_progress" in seen
    service.finish(batch)


def test_in_flight_is_what_is_in_flight(start, origin):
    service = start("--max-per-host", 5)
    batch = service.submit([origin.url("/delay/1")] * 12)
    eventually(lambda: origin.active() == 5)
    counts = service.batch(batch["id"])["request_counts"]
    assert counts["in_flight"] == 5 and counts["queued"] == 7, counts
    service.delete(f"/v1/batches/{batch['id']}").expect(204)


def test_wait_answers_when_the_batch_ends(service, origin):
    batch = service.submit([origin.url("/delay/0.5")])
    start = time.monotonic()
    answer = service.get(f"/v1/batches/{batch['id']}?wait=20").expect(200)
    took = time.monotonic() - start
    assert answer.json()["status"] == "completed" and 0.3 < took < 2 * SLOWER
    start = time.monotonic()
    service.get(f"/v1/batches/{batch['id']}?wait=20").expect(200)
    assert time.monotonic() - start < 0.5 * SLOWER, "an ended batch is waited for"


def test_wait_answers_after_its_time(service, origin):
    batch = service.submit([origin.url("/delay/5")])
    start = time.monotonic()
    answer = service.get(f"/v1/batches/{batch['id']}?wait=1").expect(200)
    assert answer.json()["status"] in ("queued", "in_progress")
    assert 0.9 <= time.monotonic() - start < 2 * SLOWER
    start = time.monotonic()
    answer = service.get(f"/v1/batches/{batch['id']}", {"Prefer": "respond-async, wait=1"})
    assert answer.expect(200).header("Preference-Applied") == "wait=1"
    assert 0.9 <= time.monotonic() - start < 2 * SLOWER
    assert service.get(f"/v1/batches/{batch['id']}?wait=0").header("Preference-Applied") is None
    service.delete(f"/v1/batches/{batch['id']}").expect(204)


def test_a_wait_over_the_bound_is_cut_in_prefer_and_refused_as_parameter(service, origin):
    batch = service.submit([origin.url("/bytes/1")])
    service.wait(batch["id"])
    answer = service.get(f"/v1/batches/{batch['id']}", {"Prefer": "wait=1000"}).expect(200)
    assert answer.header("Preference-Applied") == "wait=60"
    for wait in ("61", "-1", "x", "1.5", ""):
        service.get(f"/v1/batches/{batch['id']}?wait={wait}").problem(
            422, "invalid-field", errors=[{"parameter": "wait"}])


def test_many_waiters_are_all_woken(service, origin):
    batch = service.submit([origin.url("/delay/0.7")])
    done = []

    def wait():
        answer = service.client().request("GET", f"/v1/batches/{batch['id']}?wait=30")
        done.append(answer.json()["status"])

    threads = [threading.Thread(target=wait) for _ in range(50)]
    for t in threads:
        t.start()
    service.get("/healthz").expect(200)
    for t in threads:
        t.join(10 * SLOWER)
    assert done == ["completed"] * 50


def test_waiters_are_woken_by_cancel_and_delete(service, origin):
    for how in ("cancel", "delete"):
        batch = service.submit([origin.url("/delay/20")])
        answers = []
        thread = threading.Thread(target=lambda: answers.append(
            service.client().request("GET", f"/v1/batches/{batch['id']}?wait=30")))
        thread.start()
        eventually(lambda: origin.active() >= 1)
        if how == "cancel":
            service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)
        else:
            service.delete(f"/v1/batches/{batch['id']}").expect(204)
        thread.join(5 * SLOWER)
        assert not thread.is_alive(), f"{how} does not wake a waiter"
        if how == "cancel":
            assert answers[0].json()["status"] == "cancelled"
        else:
            answers[0].problem(404, "not-found")


def test_a_waiter_that_hangs_up_is_forgotten(service, origin):
    batch = service.submit([origin.url("/delay/1")])
    for _ in range(20):
        with service.connect() as sock:
            sock.sendall(b"GET /v1/batches/%s?wait=30 HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (
                batch["id"].encode(), service.address[0].encode(), service.address[1]))
    assert service.wait(batch["id"])["status"] == "completed"


def test_the_etag_tells_whether_something_changed(service, origin):
    batch = service.submit([origin.url("/bytes/1")])
    service.wait(batch["id"])
    path = f"/v1/batches/{batch['id']}"
    first = service.get(path).expect(200)
    etag = first.header("ETag")
    assert etag.startswith('W/"') and first.header("Cache-Control") == "no-cache"
    for field in (etag, f'"other", {etag}', "*", etag[2:]):
        same = service.get(path, {"If-None-Match": field}).expect(304)
        assert same.body == b"" and same.header("ETag") == etag
    service.get(path, {"If-None-Match": 'W/"other"'}).expect(200)


def test_the_etag_of_a_running_batch_changes(service, origin):
    batch = service.submit([origin.url("/delay/0.3"), origin.url("/delay/0.6")],
                           limits={"max_parallel": 1})
    path = f"/v1/batches/{batch['id']}"
    etag = service.get(path).header("ETag")
    service.wait(batch["id"])
    answer = service.get(path, {"If-None-Match": etag}).expect(200)
    assert answer.header("ETag") != etag


# ---- the list ----

def test_the_list_is_newest_first_and_pages_without_gaps(start, origin):
    service = start()
    ids = [service.submit([origin.url("/bytes/1")])["id"] for _ in range(25)]
    assert [b["id"] for b in service.get("/v1/batches").json()["data"]] == ids[:4:-1]
    for limit in (1, 7, 24, 25, 26, 1000):
        seen, after = [], None
        while True:
            more = {"after": after} if after else {}
            page = service.get("/v1/batches" + query(limit=limit, **more)).expect(200).json()
            assert page["object"] == "list" and len(page["data"]) <= limit
            for batch in page["data"]:
                check_counts(batch)
            seen += [b["id"] for b in page["data"]]
            if not page["has_more"]:
                break
            after = page["next"]
        assert seen == ids[::-1]


def test_the_list_pages_stably_while_batches_come_and_go(start, origin):
    service = start()
    ids = [service.submit([origin.url("/bytes/1")])["id"] for _ in range(6)]
    page = service.get("/v1/batches?limit=2").json()
    service.submit([origin.url("/bytes/1")])
    service.delete(f"/v1/batches/{ids[4]}").expect(204)
    rest = service.get("/v1/batches" + query(after=page["next"])).json()
    assert [b["id"] for b in page["data"]] == ids[:3:-1]
    assert [b["id"] for b in rest["data"]] == ids[3::-1]


def test_the_list_can_be_asked_for_a_status(start, origin):
    service = start()
    done = service.submit([origin.url("/bytes/1")])["id"]
    service.wait(done)
    stopped = service.submit([origin.url("/delay/30")])["id"]
    service.post(f"/v1/batches/{stopped}/cancel").expect(202)
    service.wait(stopped)
    running = service.submit([origin.url("/delay/30")])["id"]
    eventually(lambda: service.batch(running)["status"] == "in_progress")
    for status, expected in (("completed", done), ("cancelled", stopped), ("in_progress", running)):
        page = service.get(f"/v1/batches?status={status}").json()
        assert [b["id"] for b in page["data"]] == [expected], status
    assert service.get("/v1/batches?status=queued").json()["data"] == []
    service.delete(f"/v1/batches/{running}").expect(204)


def test_an_empty_list_is_a_list(start):
    assert start().get("/v1/batches").json() == {"object": "list", "data": [], "next": None,
                                                 "has_more": False}


# ---- cancel and delete ----

def test_cancel_stops_a_running_batch(start, origin):
    """Every request has its result, and the origin sees no new ones."""
    service = start("--max-per-host", 10)
    batch = service.submit([origin.url(f"/delay/0.2?t={i}", HOSTS[i % 3]) for i in range(2000)])
    eventually(lambda: service.batch(batch["id"])["request_counts"]["succeeded"] > 30)
    answer = service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)
    at_cancel = origin.arrivals()
    assert answer.json()["status"] in ("cancelling", "cancelled")
    results = service.finish(batch)
    final = service.batch(batch["id"])
    assert final["status"] == "cancelled" and final["ended_at"]
    counts = final["request_counts"]
    assert counts["cancelled"] > 1500 and counts["succeeded"] >= 30
    for r in results:
        if r["status"] == "cancelled":
            assert r["http_status"] is None and r["body_url"] is None, r
    # No new requests: a later batch's requests are the only ones that arrive.
    service.run([origin.url("/bytes/1", HOSTS[0])])
    assert origin.arrivals() <= at_cancel + 1
    # What had succeeded was really fetched.
    hits = {h.uri for h in origin.hits()}
    for r in results:
        if r["status"] == "succeeded":
            assert r["url"].split(str(origin.port))[1] in hits


def test_cancel_ends_what_is_in_flight(service, origin):
    batch = service.submit([origin.url("/delay/60")] * 3)
    eventually(lambda: origin.active() == 3)
    start = time.monotonic()
    service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)
    results = service.finish(batch)
    assert time.monotonic() - start < 5 * SLOWER
    assert [r["status"] for r in results] == ["cancelled"] * 3
    eventually(lambda: origin.active() == 0)


def test_an_ended_batch_cannot_be_cancelled(service, origin):
    batch = service.submit([origin.url("/bytes/1")])
    service.wait(batch["id"])
    service.post(f"/v1/batches/{batch['id']}/cancel").problem(409, "conflict")
    assert service.batch(batch["id"])["status"] == "completed"
    other = service.submit([origin.url("/delay/30")])
    service.post(f"/v1/batches/{other['id']}/cancel").expect(202)
    service.wait(other["id"])
    service.post(f"/v1/batches/{other['id']}/cancel").problem(409, "conflict")


def test_cancel_of_one_batch_leaves_the_others(start, origin):
    service = start("--max-per-host", 4)
    batches = [service.submit([origin.url(f"/delay/0.05?t={b}-{i}") for i in range(60)])
               for b in range(3)]
    service.post(f"/v1/batches/{batches[1]['id']}/cancel").expect(202)
    for b in (0, 2):
        assert all(r["status"] == "succeeded" for r in service.finish(batches[b]))
    check_complete(service.wait(batches[1]["id"]), service.results(batches[1]["id"]))


@pytest.mark.parametrize("running", [False, True])
def test_delete_removes_every_trace(service, origin, running):
    batch = service.submit([origin.url("/delay/30" if running else f"/bytes/5?{i}")
                            for i in range(20)])
    if running:
        eventually(lambda: origin.active() > 0)
    else:
        service.wait(batch["id"])
    service.delete(f"/v1/batches/{batch['id']}").expect(204)
    base = f"/v1/batches/{batch['id']}"
    for path in ("", "?wait=1", "/results", "/results/0", "/results/0/body"):
        service.get(base + path).problem(404, "not-found")
    service.get(base + "/results", {"Accept": "application/x-ndjson"}).problem(404, "not-found")
    service.post(base + "/cancel").problem(404, "not-found")
    service.delete(base).problem(404, "not-found")
    listed = service.get("/v1/batches?limit=1000").json()["data"]
    assert batch["id"] not in [b["id"] for b in listed]
    eventually(lambda: origin.active() == 0)


def test_deleted_batches_stay_deleted_and_their_space_is_used_again(start, origin):
    """Fifteen rounds of 4 MiB of bodies: the database holds about one of them at the end."""
    service = start()
    for n in range(15):
        batch = service.submit([origin.url(f"/bytes/{1 << 20}?t={n}-{i}") for i in range(4)])
        service.wait(batch["id"])
        service.delete(f"/v1/batches/{batch['id']}").expect(204)
    service.restart()
    assert service.get("/v1/batches").json()["data"] == []
    service.stop()
    used = sum(p.stat().st_size for p in service.data.rglob("*")
               if p.is_file() and p.name != "reserve")
    assert used < 3 * (4 << 20), f"{used >> 20} MiB"


def test_a_list_shows_batches_that_end_as_they_were_or_as_they_are(service, origin):
    """Every answer is held against openapi.yaml: what is in progress has no end and no expiry."""
    batches, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            service.get("/v1/batches?limit=3").expect(200)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for r in readers:
        r.start()
    try:
        for n in range(size(80, 20)):
            batches.append(service.submit([origin.url(f"/bytes/1?{n}")]))
    finally:
        stop.set()
        for r in readers:
            r.join()
    for b in batches:
        service.wait(b["id"])
