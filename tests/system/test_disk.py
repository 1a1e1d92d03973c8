"""Promise 3: a full, failing or read-only disk. The data lies on a small tmpfs that the test fills
and frees, and strace makes system calls fail. --max-disk of promise 4."""
import contextlib
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time

import pytest

import harness
from harness import SLOWER, eventually
from origin import HOSTS, content

MIB = 1 << 20


class Small(harness.Service):
    """A service whose data lies on a tmpfs of so many MiB."""

    def __init__(self, mib, *args):
        super().__init__(harness.temp_dir("disk"), *args)
        self.data.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "batchfetch", self.data],
                       check=True)
        self.filler = self.data / "filler"

    def free(self):
        fs = os.statvfs(self.data)
        return fs.f_bavail * fs.f_frsize

    def fill(self, leave=0):
        """Somebody else takes the space."""
        n = (self.free() - leave) // 4096
        with open(self.filler, "ab", 0) as f, contextlib.suppress(OSError):
            for _ in range(n):  # not what the service gives up meanwhile
                f.write(b"\1" * 4096)

    def give_back(self):
        self.filler.unlink()

    def causes(self):
        answer = self.get("/readyz")
        assert answer.status in (200, 503)
        return [c["cause"] for c in answer.json()["causes"]]

    def ready(self, seconds=5):
        """It is well again within the promised time, and goes on by itself."""
        begin = time.monotonic()
        eventually(lambda: self.get("/readyz").status == 200, seconds, "ready again")
        return time.monotonic() - begin

    def end(self):
        try:
            self.stop()
        finally:
            subprocess.run(["umount", "-l", self.data], check=True)
            shutil.rmtree(self.dir, ignore_errors=True)


@pytest.fixture
def small():
    services = []

    def start(mib, *args):
        services.append(Small(mib, *args))
        return services[-1].start()

    yield start
    for service in services:
        service.end()


@contextlib.contextmanager
def failing(service, error, calls, when=""):
    """While it lasts, these system calls of the service fail."""
    strace = subprocess.Popen(
        ["strace", "-f", "-q", "-o", "/dev/null", "-p", str(service.process.pid),
         "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}{when}"],
        stderr=subprocess.PIPE)
    try:
        tasks = pathlib.Path(f"/proc/{service.process.pid}/task")

        def traced():
            assert strace.poll() is None, strace.stderr.read()
            return all(f"TracerPid:\t{strace.pid}" in (t / "status").read_text()
                       for t in tasks.iterdir())

        eventually(traced, what="strace attached")
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(10)
        strace.stderr.close()


def refused(service, status, name, detail=None):
    answer = service.post("/v1/batches", {"urls": ["http://127.0.0.1:1/"]})
    problem = answer.problem(status, name, detail)
    assert int(answer.header("Retry-After")) >= 1
    return problem


def database(service):
    """What is on disk after the stop: nothing is left of submissions that were refused, and every
    request of the others has one result."""
    db = sqlite3.connect(f"file:{service.data}/batchfetch.db?mode=ro", uri=True)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        batches = dict(db.execute("SELECT no, total FROM batch"))
        assert db.execute("SELECT count(*) FROM batch WHERE state NOT IN (3, 4)").fetchone() == (0,)
        pages = {n for n, in db.execute("SELECT DISTINCT id >> 32 FROM page")}
        assert pages <= set(batches), "pages of a batch that is not there"
        for no, total in batches.items():
            keys = [k & 0xffffffff for k, in
                    db.execute("SELECT key FROM result WHERE key >> 32 = ? ORDER BY key", (no,))]
            assert keys == list(range(total)), f"batch {no}"
    finally:
        db.close()


def all_succeeded(service, batch, size=None, attempts=1):
    results = service.finish(batch, include="body" if size is None else "headers")
    for r in results:
        assert r["status"] == "succeeded", r
        assert r["attempts"] == attempts, r
        assert size is None or r["body_bytes"] == size, r
    return results


def test_promise_3_a_full_disk_refuses_work_loses_nothing_and_goes_on(small, origin):
    """Promise 3: filled to the last byte while it fetches, reads and accepts."""
    service = small(32, "--max-disk", "none", "--max-parallel", 8)
    old = service.submit([origin.url(f"/bytes/200000?t=old-{i}") for i in range(20)])
    service.wait(old["id"])
    before = service.results(old["id"])
    running = service.submit([origin.url(f"/delay/0.1?t=r-{i}", HOSTS[i % 8]) for i in range(200)],
                             limits={"max_per_host": 1})
    eventually(lambda: service.batch(running["id"])["request_counts"]["succeeded"] > 8)

    service.fill()
    assert eventually(service.causes) == ["disk_full"]
    assert service.metric('batchfetch_health{cause="disk_full"}') == 1
    refused(service, 507, "disk-full", "space")
    # What is in flight is stored, and nothing more is begun.
    counts = eventually(lambda: (c := service.batch(running["id"])["request_counts"])["in_flight"] == 0
                        and c)
    assert counts["queued"] > 0 and counts["failed"] == 0
    begun = len(origin.hits())
    # Reading goes on.
    assert service.results(old["id"]) == before
    assert service.body(before[3]) == content(200000, f"old-{before[3]['index']}")
    assert {b["id"] for b in service.get("/v1/batches").expect(200).json()["data"]} == \
        {old["id"], running["id"]}
    # So do steering and deleting.
    service.post(f"/v1/batches/{running['id']}/pause").expect(200, 202)
    service.post(f"/v1/batches/{running['id']}/resume").expect(200, 202)
    service.delete(f"/v1/batches/{old['id']}").expect(204)
    service.get(f"/v1/batches/{old['id']}").problem(404, "not-found")
    assert service.batch(running["id"])["request_counts"]["queued"] == counts["queued"]
    assert len(origin.hits()) == begun

    service.give_back()
    took = service.ready()
    all_succeeded(service, running)
    all_succeeded(service, service.submit([origin.url("/bytes/10?t=after")]))
    service.stop()
    assert took < 5 * SLOWER
    database(service)
    assert len(re.findall("disk_full", service.stderr())) <= 4, "logged at changes only"


def test_promise_3_an_upload_that_finds_no_space_leaves_nothing(small, origin):
    """Its rows are on the disk already when it is full: they go, though the disk stays full."""
    service = small(32, "--max-disk", "none")
    half = threading.Event()

    def lines():
        line = b'"' + origin.url("/bytes/1?x=" + "y" * 500).encode() + b'"\n'
        yield line * 16384  # one piece, which is stored
        half.wait(20)
        for _ in range(20):
            yield line * 1024

    answers = []
    thread = threading.Thread(target=lambda: answers.append(service.client().request(
        "POST", "/v1/batches", lines(), {"Content-Type": "application/x-ndjson"})))
    thread.start()
    eventually(lambda: service.metric("batchfetch_database_bytes") +
               service.metric("batchfetch_wal_bytes") > 8 * MIB)
    eventually(lambda: service.causes() == ["disk_full"] or service.fill())
    half.set()
    thread.join()
    answers[0].problem(507, "disk-full")
    assert int(answers[0].header("Retry-After")) >= 1
    assert service.get("/v1/batches").expect(200).json()["data"] == []

    def rows():
        db = sqlite3.connect(f"file:{service.data}/batchfetch.db?mode=ro", uri=True)
        try:
            return [db.execute(f"SELECT count(*) FROM {t}").fetchone()[0]
                    for t in ("batch", "page")]
        finally:
            db.close()

    eventually(lambda: rows() == [0, 0], what="what was staged is gone, on a full disk")
    service.give_back()
    service.ready()
    all_succeeded(service, service.submit([origin.url("/bytes/10")]))


def test_promise_3_bodies_that_find_no_space_are_fetched_again(small, origin):
    """Spilled bodies (no length is announced), more of them than there is room for: no attempt is
    counted, and none ends as `internal`."""
    service = small(32, "--max-disk", "none", "--max-parallel", 8)
    n, size = 6, 3 * MIB
    service.fill(leave=14 * MIB)
    batch = service.submit([origin.url(f"/gzip/{size}?t=b-{i}") for i in range(n)])
    eventually(lambda: service.metric("batchfetch_disk_refetched_total") > 0, 20)
    counts = service.batch(batch["id"])["request_counts"]
    assert counts["failed"] == 0
    service.give_back()
    results = all_succeeded(service, batch, size)
    assert service.body(results[2]) == content(size, "b-2")
    service.stop()
    database(service)


FAULTS = [
    ("ENOSPC", "pwrite64", 507, "disk-full", "disk_full"),
    ("EDQUOT", "pwrite64", 507, "disk-full", "disk_full"),
    ("EIO", "pwrite64", 503, "storage", "store_failed"),
    ("EROFS", "pwrite64", 503, "storage", "read_only"),
]


def test_promise_3_a_disk_that_fails_confirms_nothing_and_loses_nothing(small, origin):
    """Every write fails for a while, in each of these ways; then it works again."""
    service = small(64, "--max-parallel", 8)
    old = service.submit([origin.url(f"/bytes/30000?t=old-{i}") for i in range(5)])
    before = service.finish(old)
    for error, calls, status, name, cause in FAULTS:
        running = service.submit([origin.url(f"/delay/0.05?t={error}-{i}", HOSTS[i % 8])
                                  for i in range(60)], limits={"max_per_host": 1})
        lines = len(service.stderr().splitlines())
        with failing(service, error, calls):
            refused(service, status, name)
            eventually(lambda: service.causes() == [cause], what=cause)
            refused(service, status, name)
            done = service.batch(running["id"])["request_counts"]
            assert done["failed"] == 0
            assert service.finish(old) == before
            assert service.body(before[0]) == content(30000, "old-0")
            service.delete(f"/v1/batches/{running['id']}").problem(status, name)
            time.sleep(0.6)  # several tries to write
            assert service.causes() == [cause]
            said = [line for line in service.stderr().splitlines()[lines:]
                    if " error " in line or " warn " in line]
            assert len(said) <= 3, said
        took = service.ready()
        assert took < 5 * SLOWER, (error, took)
        all_succeeded(service, running)
    assert len(service.get("/v1/batches").json()["data"]) == 1 + len(FAULTS)
    service.stop()
    database(service)


@pytest.mark.parametrize("error,calls", [("EIO", "pwrite64"), ("EIO", "pread64"),
                                         ("ENOSPC", "pwrite64"), ("ENOSPC", "ftruncate")])
def test_promise_3_a_call_that_fails_now_and_then(small, origin, error, calls):
    """Every third one. What is confirmed is there and ends, the rest is refused with Retry-After."""
    service = small(64, "--max-parallel", 8)
    accepted = []
    with failing(service, error, calls, ":when=3+3"):
        for n in range(6):
            answer = service.post("/v1/batches", {"urls": [
                origin.url(f"/bytes/{100 + 300000 * (i % 2)}?t={n}-{i}") for i in range(6)]})
            if answer.status == 202:
                accepted.append(answer.json())
            else:
                answer.expect(503, 507)
                assert int(answer.header("Retry-After")) >= 1
    service.ready()
    for batch in accepted:
        all_succeeded(service, batch)
    listed = service.get("/v1/batches").expect(200).json()["data"]
    assert {b["id"] for b in listed} >= {b["id"] for b in accepted}
    for batch in listed:  # one that was refused may be there, but then whole
        assert service.wait(batch["id"])["request_counts"]["succeeded"] == 6
    service.stop()
    database(service)


def used(service):
    """What the data directory takes, its nameless file for bodies included."""
    total = 0
    for entry in service.data.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat().st_blocks * 512
    for fd in pathlib.Path(f"/proc/{service.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(fd).startswith(str(service.data)) and "(deleted)" in os.readlink(fd):
                total += fd.stat().st_blocks * 512
    return total


def test_promise_4_max_disk_is_kept_by_refusing_and_waiting(small, origin):
    """--max-disk of promise 4: results fill it, nothing is dropped, deleting makes room again."""
    service = small(128, "--max-disk", "24m", "--max-parallel", 4)
    peak, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            peak.append(used(service))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        done = []
        for _ in range(20):
            answer = service.post("/v1/batches", {"urls": [
                origin.url(f"/bytes/{MIB // 2}?t={len(done)}-{i}") for i in range(6)]})
            if answer.status == 507:
                causes = service.get("/readyz").json()["causes"]
                if causes:
                    break
                continue  # what was under way took less than might have been: there is room again
            done.append(answer.expect(202).json())
            eventually(lambda: service.batch(done[-1]["id"])["status"] == "completed" or
                       service.causes() == ["quota"], 30)
        detail = answer.problem(507, "disk-full", r"--max-disk 24\.0m: .* deleting")["detail"]
        assert int(answer.header("Retry-After")) >= 1
        assert [c["cause"] for c in causes] == ["quota"]
        assert causes[0]["detail"][:40] == detail[:40]
        assert len(done) >= 3
        # The last one waits, half done perhaps; what is done stays and can be read.
        waiting = done.pop()
        for n, batch in enumerate(done[:2]):
            results = all_succeeded(service, batch, MIB // 2)
            assert service.body(results[0]) == content(MIB // 2, f"{n}-0")
        assert service.batch(waiting["id"])["request_counts"]["failed"] == 0
        service.delete(f"/v1/batches/{done[0]['id']}").expect(204)
        service.delete(f"/v1/batches/{done[1]['id']}").expect(204)
        assert service.ready(10) < 5 * SLOWER
        for batch in [*done[2:], waiting]:
            all_succeeded(service, batch, MIB // 2)
        assert service.ready(10) < 5 * SLOWER  # what was just written is in the log and the database
        all_succeeded(service, service.submit([origin.url("/bytes/10?t=after")]))
    finally:
        stop.set()
        watcher.join()
    # For moments the log of what is being removed may be above.
    assert max(peak) <= 25 * MIB, f"{max(peak) / MIB:.1f} MiB"
    assert len(peak) > 20
    service.stop()
    database(service)


def test_promise_3_a_restart_on_a_full_disk(small, origin):
    """Killed, and others fill the disk: it starts all the same, reads, deletes, and goes on."""
    service = small(32, "--max-disk", "none", "--max-parallel", 4)
    old = service.submit([origin.url(f"/bytes/50000?t=old-{i}") for i in range(8)])
    before = service.finish(old)
    running = service.submit([origin.url(f"/delay/0.1?t=r-{i}", HOSTS[i % 4]) for i in range(40)],
                             limits={"max_per_host": 1})
    eventually(lambda: service.batch(running["id"])["request_counts"]["succeeded"] > 3)
    service.kill()
    assert (service.data / "reserve").stat().st_blocks * 512 >= 2 * MIB
    (service.data / "batchfetch.db-shm").unlink()  # so that there is something to make
    service.fill()
    assert service.free() == 0
    service.start()
    assert service.causes() == ["disk_full"]
    refused(service, 507, "disk-full")
    assert service.finish(old) == before
    service.delete(f"/v1/batches/{old['id']}").expect(204)
    service.give_back()
    service.ready()
    results = service.finish(running)
    assert {r["status"] for r in results} == {"succeeded"}
    service.stop()
    database(service)
