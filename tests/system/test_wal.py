"""The write-ahead log stays short while clients read without pause (promise 4): no reader holds a
snapshot while it waits, and the log begins anew under constant reading and writing."""
import pathlib
import threading

import pytest

import harness
from harness import eventually, size
from origin import HOSTS

MIB = 1024 * 1024
BOUND = 160 * MIB  # README: 64 MiB, and the largest group of results


class Watch:
    """The largest size that the log has while it is watched."""

    def __init__(self, service):
        self.path = pathlib.Path(service.data, "batchfetch.db-wal")
        self.most, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self._stop.wait(0.005):
            now = self.path.stat().st_size if self.path.exists() else 0
            self.most = max(self.most, now)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def slow_stream(service, path, stop, seen):
    """Reads an answer a little at a time, until it ends or `stop` is set; begins it again then."""
    while not stop.is_set():
        with service.connect() as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {service.address[0]}:{service.address[1]}\r\n"
                         f"Accept: application/x-ndjson, */*\r\nConnection: close\r\n\r\n".encode())
            got = sock.recv(64)
            assert got.startswith(b"HTTP/1.1 200"), got
            while got and not stop.is_set():
                seen.append(len(got))
                stop.wait(0.02)
                got = sock.recv(4096)


@pytest.mark.slow
def test_promise_4_the_log_is_bounded_while_clients_read(start, origin):
    service = start("--max-per-host", 50)
    base = service.submit([origin.url(f"/bytes/{2000000 if i == 0 else 3000}?w{i}", HOSTS[i % 9])
                           for i in range(size(600))])
    service.wait(base["id"])
    path = f"/v1/batches/{base['id']}"
    waiting = service.submit([origin.url("/delay/0.1")] * 100)
    service.post(f"/v1/batches/{waiting['id']}/pause").expect(200)
    stop, seen, pages, waits, errors = threading.Event(), [], [], [], []

    def guarded(fn, *args):
        def run():
            try:
                fn(*args)
            except Exception as e:  # pylint: disable=broad-except
                if not stop.is_set():
                    errors.append(repr(e))
        return threading.Thread(target=run)

    def page():
        first = f"{path}/results?limit=500&include=body"
        answers = harness.unrecorded(service, first)
        doc = next(answers)
        while not stop.is_set():
            pages.append(len(doc["data"]))
            doc = answers.send(f"{first}&after={doc['next']}" if doc["has_more"] else first)

    def wait():
        client = service.client()
        while not stop.is_set():
            client.request("GET", f"/v1/batches/{waiting['id']}?wait=1").expect(200)
            waits.append(1)

    threads = [guarded(page) for _ in range(3)] + [guarded(wait) for _ in range(3)]
    threads += [guarded(slow_stream, service, path + "/results?include=body", stop, seen)
                for _ in range(10)]
    threads += [guarded(slow_stream, service, path + "/results/0/body", stop, seen)
                for _ in range(5)]
    for t in threads:
        t.start()
    eventually(lambda: len(pages) > 3 and len(seen) > 100 and waits, 30)
    try:
        with Watch(service) as log:
            n = size(2000, 100)  # 230 MiB
            load = service.submit([origin.url(f"/bytes/120000?{i}", HOSTS[i % 9]) for i in range(n)])
            assert service.wait(load["id"], 100)["request_counts"]["succeeded"] == n
        assert log.most <= BOUND, f"{log.most / MIB} MiB"
        if not harness.SANITIZED:  # else less is written than it may hold
            assert log.most > 20 * MIB
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not errors, errors[:3]
    metrics = service.get("/metrics", keep=0).body.decode()
    shown = int(float(metrics.partition("\nbatchfetch_wal_bytes ")[2].split()[0]))
    assert shown == log.path.stat().st_size
    service.delete(f"/v1/batches/{waiting['id']}").expect(204)
