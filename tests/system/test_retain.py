"""Retention (promise 4): an ended batch is gone for readers when it expires, its rows go without
holding anything up, the file gets shorter by itself, and the clock takes no result too early."""
import sqlite3
import time

import pytest

import harness
from harness import check_complete, eventually, size
from origin import HOSTS, content

DAY = 24 * 3600 * 1000


def rows(service, table="result"):
    """How many the database has, read beside the service."""
    db = sqlite3.connect(f"file:{service.data}/batchfetch.db?mode=ro", uri=True)
    try:
        return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    finally:
        db.close()


def failed_checkpoints(service):
    name = 'batchfetch_checkpoints_total{outcome="failed"}'
    return next(int(line.split()[1]) for line in service.get("/metrics").body.decode().splitlines()
                if line.startswith(name))


def age(service, ms):
    """Makes what is recorded older; the service is stopped."""
    db = sqlite3.connect(service.data / "batchfetch.db")
    with db:
        db.execute("UPDATE batch SET created=created-?1, started=max(0,started-?1), "
                   "ended=max(0,ended-?1)", (ms,))
    db.close()


def seconds_of(batch):
    """From its end to its expiry."""
    def ms(text):
        day = time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
        return day + int(text[20:23]) / 1000
    return round(ms(batch["expires_at"]) - ms(batch["ended_at"]), 3)


def test_promise_4_a_batch_is_gone_when_it_expires(start, origin):
    service = start()
    urls = [origin.url(f"/bytes/10?{i}") for i in range(10)]
    kept = service.submit(urls)
    batch = service.submit(urls, expires_after_s=2, name="short")
    assert batch["expires_at"] is None
    ended = service.wait(batch["id"])
    assert seconds_of(ended) == 2
    assert seconds_of(service.wait(kept["id"])) == 7 * 24 * 3600
    path = f"/v1/batches/{batch['id']}"
    page = service.get(path + "/results?limit=3").expect(200).json()
    assert len(service.results(batch["id"])) == 10
    until = time.monotonic() + 10
    while service.get(path).status == 200:
        assert time.monotonic() < until
    for method, what in (("GET", ""), ("GET", "/results"), ("GET", "/results/0"),
                         ("GET", "/results/0/body"), ("GET", "/results?after=" + page["next"]),
                         ("POST", "/cancel"), ("POST", "/retry"), ("DELETE", "")):
        service.request(method, path + what).problem(404, "not-found", "may have expired")
    assert [b["id"] for b in service.get("/v1/batches").json()["data"]] == [kept["id"]]
    eventually(lambda: rows(service) == 10 and rows(service, "batch") == 1)
    metrics = service.get("/metrics").body.decode()
    assert "\nbatchfetch_batches_expired_total 1\n" in metrics
    check_complete(service.batch(kept["id"]), service.results(kept["id"]))


def test_promise_4_what_has_not_ended_does_not_expire(start, origin):
    service = start("--retain", "1s", "--max-per-host", 1)
    paused = service.submit([origin.url(f"/delay/0.1?{i}", HOSTS[1]) for i in range(100)])
    service.post(f"/v1/batches/{paused['id']}/pause").expect(200)
    batch = service.submit([origin.url(f"/delay/0.5?{i}") for i in range(5)], expires_after_s=1)
    service.finish(batch)  # it ran for longer than it is kept
    eventually(lambda: service.get(f"/v1/batches/{batch['id']}").status == 404)
    assert service.batch(paused["id"])["status"] == "paused"
    eventually(lambda: rows(service, "batch") == 1)
    service.delete(f"/v1/batches/{paused['id']}").expect(204)
    eventually(lambda: rows(service, "batch") == 0 and rows(service, "page") == 0)


def test_promise_4_the_operators_bound(start, origin):
    service = start("--retain", "1h")
    url = origin.url("/bytes/1")
    service.post("/v1/batches", {"urls": [url], "expires_after_s": 3601}).problem(
        422, "invalid-field", errors=[{"pointer": "/expires_after_s", "detail": "1 to 3600"}])
    lines = service.post("/v1/batches?expires_after_s=60", url,
                         {"Content-Type": harness.TEXT}).expect(202).json()
    assert seconds_of(service.wait(lines["id"])) == 60
    most = service.submit([url], expires_after_s=3600)
    assert seconds_of(service.wait(most["id"])) == 3600
    # What holds is what is set now: for batches that have ended, too.
    service.restart("--retain", "30s")
    assert seconds_of(service.batch(most["id"])) == 30
    assert seconds_of(service.batch(lines["id"])) == 30
    service.restart("--retain", "never")
    assert seconds_of(service.batch(most["id"])) == 3600
    forever = service.submit([url])
    assert service.wait(forever["id"])["expires_at"] is None


def test_promise_4_an_idempotency_key_holds_as_long_as_its_batch(start, origin):
    service = start()
    doc, key = {"urls": [origin.url("/bytes/1")], "expires_after_s": 2}, {"Idempotency-Key": "k"}
    first = service.post("/v1/batches", doc, key).expect(202).json()
    service.wait(first["id"])
    assert service.post("/v1/batches", doc, key).json()["id"] == first["id"]
    service.restart(kill=True)
    assert service.post("/v1/batches", doc, key).json()["id"] == first["id"]
    # At the very moment of the expiry, whether its row has been marked or not.
    again = eventually(lambda: (lambda b: b["id"] != first["id"] and b)(
        service.post("/v1/batches", doc, key).expect(202).json()))
    service.get(f"/v1/batches/{first['id']}").problem(404, "not-found")
    check_complete(service.wait(again["id"]), service.results(again["id"]))


def test_promise_4_the_start_after_a_long_stop_is_quick(start, origin):
    """Many batches expired meanwhile: gone at once, removed later, held up is nothing."""
    service = start()
    batch = service.submit([origin.url(f"/bytes/2000?{i}") for i in range(size(2000))])
    service.wait(batch["id"])
    n = size(20000)
    service.stop()
    db = sqlite3.connect(service.data / "batchfetch.db")
    with db:
        columns = [r[1] for r in db.execute("PRAGMA table_info(batch)")][2:]
        names = ",".join(columns)
        db.execute(f"WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM i WHERE n<{n}) "
                   f"INSERT INTO batch(no,id,{names}) SELECT 100+n, 'b_'||printf('%036d',n), {names} "
                   f"FROM batch, i")
    db.close()
    age(service, 8 * DAY)
    began = time.monotonic()
    service.start()
    assert time.monotonic() - began < 2 * harness.SLOWER
    assert service.get("/v1/batches").json()["data"] == []
    service.get(f"/v1/batches/{batch['id']}").problem(404, "not-found")
    fresh = service.submit([origin.url(f"/bytes/5?{i}") for i in range(50)])
    service.finish(fresh)
    service.restart(kill=True)  # in the middle of it
    eventually(lambda: rows(service, "batch") == 1, 60)
    assert rows(service) == 50 and rows(service, "body") == 50
    check_complete(service.batch(fresh["id"]), service.results(fresh["id"]))


def test_promise_4_a_clock_that_is_years_ahead_at_the_start_removes_nothing(start, origin):
    service = start("--retain", "1d")
    batch = service.submit([origin.url(f"/bytes/10?{i}") for i in range(5)])
    service.wait(batch["id"])
    results = service.results(batch["id"])
    service.stop()
    age(service, 3 * 365 * DAY)  # as if the clock had gone on by three years
    service.start()
    assert "clock_stepped" in service.stderr()
    again = service.results(batch["id"])
    assert [r["index"] for r in again] == [r["index"] for r in results]
    assert rows(service) == 5
    service.stop()
    age(service, -3 * 365 * DAY + 2 * DAY)  # two days are believed
    service.start()
    service.get(f"/v1/batches/{batch['id']}").problem(404, "not-found")
    eventually(lambda: rows(service) == 0)


@pytest.mark.slow
def test_promise_4_disk_space_is_given_back_while_it_works(start, origin):
    """Free pages are used again first; what is too much of them goes back to the file system."""
    service = start("--max-per-host", 20)
    kept = service.submit([origin.url(f"/bytes/20000?t=k{i}") for i in range(100)])
    bulky = service.submit([origin.url(f"/bytes/4000000?t=v{i}", HOSTS[i % 5]) for i in range(30)])
    service.wait(bulky["id"])
    service.wait(kept["id"])
    file = service.data / "batchfetch.db"
    eventually(lambda: file.stat().st_size > 80 << 20, what="a large database")
    service.delete(f"/v1/batches/{bulky['id']}").expect(204)
    end = time.monotonic() + 60 * harness.SLOWER
    while file.stat().st_size > 50 << 20:
        load = service.submit([origin.url(f"/bytes/1000?{i}", HOSTS[i % 5]) for i in range(200)])
        assert service.wait(load["id"])["request_counts"]["succeeded"] == 200
        assert time.monotonic() < end, file.stat().st_size
    results = service.finish(kept, include="body")
    assert all(r["body"].encode() == content(20000, f"k{r['index']}") for r in results)
    db = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


@pytest.mark.slow
def test_promise_4_disk_space_is_given_back_when_a_reader_was_in_the_way(start, origin):
    """The log is folded back as soon as the reader is gone, though nothing else is written."""
    service = start("--max-per-host", 20)
    bulky = service.submit([origin.url(f"/bytes/4000000?t=v{i}", HOSTS[i % 5]) for i in range(30)])
    service.wait(bulky["id"])
    file = service.data / "batchfetch.db"
    eventually(lambda: file.stat().st_size > 80 << 20, what="a large database")
    reader, other = (sqlite3.connect(f"file:{file}?mode=ro", uri=True, isolation_level=None)
                     for _ in range(2))
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM batch").fetchone()
    service.delete(f"/v1/batches/{bulky['id']}").expect(204)
    eventually(lambda: other.execute("PRAGMA page_count").fetchone()[0] * 8192 < 50 << 20, 30,
               "pages given back")
    assert file.stat().st_size > 80 << 20
    failed = failed_checkpoints(service)
    eventually(lambda: failed_checkpoints(service) >= failed + 2, what="trying in vain")
    assert file.stat().st_size > 80 << 20
    reader.close()
    eventually(lambda: file.stat().st_size < 50 << 20, what="a smaller file")
    other.close()
