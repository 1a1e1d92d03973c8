"""Damage (promise 5 of docs/reliability.md): of the database while requests wait in it. A batch with
requests that cannot be read is its own fault: these end as failed, all else goes on."""
import sqlite3
import subprocess

import pytest

import harness
from harness import check_counts, size
from origin import HOSTS, content

N = size(3000, 1500)
PAGE = 8192


def leaves(service, table):
    """The places of a table's leaves in the file of a service that is stopped."""
    db = sqlite3.connect(f"file:{service.data}/batchfetch.db?mode=ro", uri=True)
    rows = db.execute("SELECT pageno FROM dbstat WHERE name=? AND pagetype='leaf' ORDER BY path",
                      (table,)).fetchall()
    db.close()
    return [(row[0] - 1) * PAGE for row in rows]


def change(service, at, fn):
    """Puts fn(a page's bytes) in its place."""
    with open(service.data / "batchfetch.db", "r+b") as f:
        f.seek(at)
        old = f.read(PAGE)
        new = fn(old)
        assert new != old and len(new) == PAGE
        f.seek(at)
        f.write(new)


def waiting(start, origin):
    """A batch of which (nearly) all still waits, one that has ended, and their service, stopped."""
    service = start()
    done = service.submit([origin.url(f"/bytes/30?t=done{i}") for i in range(50)], name="done")
    service.finish(done)
    batch = service.submit([origin.url(f"/bytes/30?t=dam{i}", HOSTS[i % 4]) for i in range(N)],
                           name="damaged", limits={"rate_per_host": 400})
    service.post(f"/v1/batches/{batch['id']}/pause").expect(200, 202)
    service.stop()
    return service, batch, done


def fetched_but(results, total):
    """All have a result; -> how many were not fetched, which are the service's fault."""
    assert sorted(r["index"] for r in results) == list(range(total))
    bad = [r for r in results if r["status"] != "succeeded"]
    for r in bad:
        assert r["status"] == "failed" and r["error"]["code"] == "internal", r
        assert "damaged" in r["error"]["message"], r
    for r in results:
        if r["status"] == "succeeded":
            assert r["body"].encode() == content(30, f"dam{r['index']}")
    return len(bad)


def zeros(data):
    return bytes(100) + data[100:]


def garbled(data):
    """Records that are none, in the middle of a row."""
    at = data.rindex(b"?t=dam")
    return data[:at - 60] + b"\xff" * 40 + data[at - 20:]


def other_scheme(data):
    """The first request of each row: of a form that is right, but nothing to fetch."""
    at = data.rindex(b"http://")
    while b"http://" in data[at - 200:at]:
        at = data.rindex(b"http://", 0, at)
    return data[:at] + b"htxp:\\\\" + data[at + 7:]


@pytest.mark.parametrize("how", [zeros, garbled, other_scheme], ids=lambda f: f.__name__)
def test_promise_5_a_damaged_page_fails_its_requests_only(start, origin, how):
    service, batch, done = waiting(start, origin)
    places = leaves(service, "page")
    for at in (places[len(places) // 2], places[len(places) // 3]):
        change(service, at, how)
    service.start()
    before = service.submit([origin.url(f"/bytes/1?t=x{i}") for i in range(200)], name="other")
    service.post(f"/v1/batches/{batch['id']}/resume").expect(200, 202)
    assert all(r["status"] == "succeeded" for r in service.finish(before))
    service.wait(batch["id"], 120)
    failed = fetched_but(service.results(batch["id"], include="body"), N)
    assert 0 < failed < N / 2
    view = service.batch(batch["id"])
    check_counts(view)
    assert view["status"] == "completed" and view["request_counts"]["failed"] == failed
    assert service.stderr().count("batch_damaged") == (0 if how is other_scheme else 1)
    assert len(service.results(done["id"])) == 50
    service.restart()
    assert service.batch(batch["id"]) == view
    if how is zeros:  # after a stop that was not clean a short database is looked through
        service.one(origin.url("/bytes/1"))
        service.kill()
        with pytest.raises(AssertionError, match="is damaged.*--check.*Restore a backup"):
            service.start()
        assert service.process.wait(10) == 3
        service._gone()
        done = subprocess.run([harness.BINARY, "--check", "--data", service.data],
                              stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
        assert done.returncode == 3 and "damaged (" in done.stderr, done


@pytest.mark.parametrize("verb", ["cancel", "delete"])
def test_promise_5_a_damaged_batch_can_be_cancelled_and_deleted(start, origin, verb):
    service, batch, done = waiting(start, origin)
    places = leaves(service, "page")
    change(service, places[len(places) // 2], zeros)
    service.start()
    if verb == "cancel":
        service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)
        view = service.wait(batch["id"])
        counts = view["request_counts"]
        assert view["status"] == "cancelled" and 0 < counts["failed"] < counts["cancelled"]
        check_counts(view)
    else:
        service.delete(f"/v1/batches/{batch['id']}").expect(204)
    other = service.submit([origin.url(f"/bytes/1?t=y{i}") for i in range(100)])
    assert all(r["status"] == "succeeded" for r in service.finish(other))
    assert len(service.results(done["id"])) == 50
    service.restart()
    assert len(service.results(done["id"])) == 50
    service.get(f"/v1/batches/{batch['id']}").expect(200 if verb == "cancel" else 404)
