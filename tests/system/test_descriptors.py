"""Descriptors are a limit of ours: when they run out, requests wait, and none of them fails."""
import contextlib
import os
import pathlib
import resource
import subprocess
import tempfile
import threading

import pytest

from harness import SANITIZED, SLOWER, eventually, size
from origin import HOSTS


def limited(hard, soft=64):
    """A command that starts the service with these limits."""
    return ["prlimit", f"--nofile={soft}:{hard}"]


def promised(service):
    """The parallel transfers that the service's first lines speak of."""
    line = next(l for l in service.stderr().splitlines() if "transfers in parallel" in l)
    return int(line.split("at most ")[1].split()[0])


def all_succeeded_at_once(results):
    assert {(r["status"], r["attempts"]) for r in results} == {("succeeded", 1)}, \
        [r for r in results if r["status"] != "succeeded" or r["attempts"] != 1][:3]


@contextlib.contextmanager
def refusing(service, fault, *more):
    """Meanwhile the kernel refuses this system call now and then, for each thread by itself."""
    call = fault.split(":")[0]
    with tempfile.TemporaryFile("w+") as said:
        strace = subprocess.Popen(["strace", "-f", "-p", str(service.process.pid), "-e",
                                   f"trace={call}", "-e", f"inject={fault}", *more], stderr=said)
        try:
            tasks = pathlib.Path(f"/proc/{service.process.pid}/task")
            eventually(lambda: strace.poll() is not None or all(
                f"TracerPid:\t{strace.pid}\n" in (t / "status").read_text() for t in tasks.iterdir()),
                what="strace")
            yield
            assert strace.poll() is None, "strace ended: it needs to be allowed to trace"
        finally:
            strace.terminate()
            strace.wait(30)
        said.seek(0)
        assert "(INJECTED)" in said.read(), "nothing was refused"


def squeeze(service, n):
    """From now on the service gets n more descriptors, and no more than that."""
    used = max(int(fd) for fd in os.listdir(f"/proc/{service.process.pid}/fd")) + 1
    hard = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (used + n, hard))


def test_the_limit_is_raised_and_all_of_it_is_used(start, origin):
    service = start("--max-per-host", 1000, prefix=limited(1000))
    soft, hard = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard == 1000
    most = promised(service)
    assert 400 < most < 1000
    n, delay = size(20000, 3 * most), 1 if SANITIZED else 0.1  # s: time to start them all in
    batch = service.submit([origin.url(f"/delay/{delay}?{i}", HOSTS[i % 20]) for i in range(n)])
    assert service.wait(batch["id"])["request_counts"]["succeeded"] == n
    assert most * 0.95 <= origin.peaks()["*"] <= most
    assert origin.arrivals() == n


def test_clients_are_served_while_all_descriptors_for_transfers_are_in_use(start, origin):
    service = start("--max-per-host", 1000, prefix=limited(1000))
    most = promised(service)
    batch = service.submit([origin.url(f"/delay/1?{i}", HOSTS[i % 20]) for i in range(2 * most)])
    clients = [service.client() for _ in range(200)]
    eventually(lambda: origin.state().get("active:*", 0) > most * 0.9, what="full use")
    for client in clients:
        client.request("GET", f"/v1/batches/{batch['id']}").expect(200)
    more = [service.connect() for _ in range(300)]  # some of them stay outside
    for client in clients:
        client.request("GET", f"/v1/batches/{batch['id']}").expect(200)
    for sock in more:
        sock.close()
    for client in clients:
        client.close()
    assert service.wait(batch["id"])["request_counts"]["succeeded"] == 2 * most
    assert origin.arrivals() == 2 * most


def test_large_bodies_need_descriptors_too_and_none_is_fetched_twice(start, origin):
    service = start("--max-per-host", 100, prefix=limited(600))
    n = 400
    results = service.run([origin.url(f"/bytes/300000?t={i}", HOSTS[i % 20]) for i in range(n)],
                          include="")
    all_succeeded_at_once(results)
    assert {r["body_bytes"] for r in results} == {300000}
    assert origin.arrivals() == n


@pytest.mark.parametrize("free", [8, 30])
def test_hardly_any_descriptor_is_left(start, origin, free):
    """Sockets, files, epoll and libcurl's socket pairs: the system refuses each of them."""
    service = start("--max-per-host", 100, "--fetchers", 2)
    service.get("/healthz").expect(200)
    squeeze(service, free)
    n = size(1000, 300) if free > 10 else 60
    all_succeeded_at_once(service.run([origin.url(f"/delay/0.01?{i}", HOSTS[i % 20])
                                       for i in range(n)]))
    assert origin.arrivals() == n
    results = service.run([origin.url(f"/bytes/300000?t={i}", HOSTS[i % 3]) for i in range(20)])
    all_succeeded_at_once(results)
    assert all(len(service.body(r)) == 300000 for r in results)


def test_a_name_is_found_although_there_is_no_socket_to_ask_by(start, origin):
    service = start("--fetchers", 1)
    service.get("/healthz").expect(200)
    squeeze(service, 0)
    batch = service.submit([f"http://good.test:{origin.port}/bytes/3?{i}" for i in range(20)])
    before = service.batch(batch["id"])
    assert before["request_counts"]["failed"] == before["request_counts"]["succeeded"] == 0
    stop = threading.Event()
    assert not stop.wait(0.3)  # some more tries of it
    assert service.batch(batch["id"])["request_counts"]["failed"] == 0
    squeeze(service, 10)
    all_succeeded_at_once(service.finish(batch))


def test_clients_wait_when_the_system_has_no_descriptor_for_them(start, origin):
    service = start()
    client = service.client()
    client.request("GET", "/healthz").expect(200)
    squeeze(service, 0)
    waiting = service.connect()
    waiting.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % service.address[1])
    client.request("GET", "/healthz").expect(200)
    squeeze(service, 10)
    client.close()  # the api looks again when a connection has ended
    waiting.settimeout(10 * SLOWER)
    assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")
    waiting.close()


# ---- the system says no, whatever we counted ----

@pytest.mark.parametrize("fault", [
    *(f"socket:error={e}:when=5+3" for e in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")),
    *(f"connect:error={e}:when=5+3" for e in ("ENOBUFS", "ENOMEM"))])
def test_connections_and_lookups_that_the_system_refuses(start, origin, fault):
    service = start("--max-per-host", 20)
    n = size(200, 60)
    hosts = ("good.test", "two.test", *HOSTS[4:20])
    with refusing(service, fault):
        results = service.run([origin.url(f"/delay/0.01?{i}", hosts[i % len(hosts)])
                               for i in range(n)])
    all_succeeded_at_once(results)
    assert origin.arrivals() == n


@pytest.mark.parametrize("error", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED"])
def test_clients_that_the_system_refuses(start, error):
    """Somebody else stays connected all the time; nobody else's end may have to be waited for."""
    service = start()
    service.get("/healthz").expect(200)
    with refusing(service, f"accept4:error={error}:when=1+2"):
        for _ in range(20):
            client = service.client(timeout=10)
            client.request("GET", "/healthz").expect(200)
            client.close()
