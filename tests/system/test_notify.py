"""Promise 6, as systemd sees it: Type=notify(-reload), the watchdog, socket activation. The tests play
systemd: a datagram socket, and a socket passed on as descriptor 3."""
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

import harness
from harness import SLOWER, eventually

# What systemd does before it runs the program: LISTEN_PID is the program's own.
PASS_ON = """
import os, sys
fd = int(sys.argv[1])
if fd != 3:
    os.dup2(fd, 3)
os.set_inheritable(3, True)
os.environ["LISTEN_FDS"] = "1"
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(0.01)
        self.env = {"NOTIFY_SOCKET": str(path)}
        self.messages = []

    def read(self):
        while True:
            try:
                self.messages.append((time.monotonic(), self.socket.recv(4096).decode()))
            except TimeoutError:
                return [text for _, text in self.messages]

    def wait(self, word, n=1):
        return eventually(lambda: sum(word in text for text in self.read()) >= n and
                          [text for text in self.read() if word in text], what=word)


@pytest.fixture
def manager(tmp_path):
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.socket.close()


def test_promise_6_ready_reloading_and_stopping_are_told(start, origin, manager):
    service = start(env=manager.env)
    manager.wait("READY=1")
    service.get("/readyz").expect(200)
    [status, *_] = manager.wait("STATUS=")
    assert "0 requests in flight, 0 queued" in status
    service.process.send_signal(signal.SIGHUP)
    [reloading] = manager.wait("RELOADING=1")
    usec = int(re.search(r"MONOTONIC_USEC=(\d+)", reloading)[1])
    assert abs(usec / 1e6 - time.monotonic()) < 10 * SLOWER
    manager.wait("READY=1", 2)
    assert "STOPPING=1" not in "".join(manager.read())
    batch = service.submit([origin.url("/delay/1")])
    eventually(lambda: origin.active() == 1)
    service.process.send_signal(signal.SIGTERM)
    manager.wait("STOPPING=1")
    assert service.process.poll() is None, "stopping is told when it begins"
    assert service.process.wait(10 * SLOWER) == 0
    service._gone()
    service.start()
    service.finish(batch)


def test_promise_6_it_is_not_told_ready_when_it_cannot_start(manager, tmp_path):
    (tmp_path / "data").write_text("no directory")
    done = subprocess.run([harness.BINARY, "--listen", "127.0.0.1:0", "--data", tmp_path / "data"],
                          env={**os.environ, **manager.env}, capture_output=True, timeout=30)
    assert done.returncode == 3
    assert "READY=1" not in "".join(manager.read())


def test_promise_6_the_watchdog_is_fed_and_starves_when_a_thread_is_stuck(start, origin, manager):
    """The watchdog wants a sign of life each second. The keeper is stopped in a sync for long."""
    service = start(env={**manager.env, "WATCHDOG_USEC": str(1000000 * SLOWER)})
    manager.wait("WATCHDOG=1", 4)
    times = [at for at, text in manager.messages if "WATCHDOG=1" in text]
    assert max(b - a for a, b in zip(times, times[1:])) < 1.0 * SLOWER, times
    if harness.SANITIZED:
        return  # tracing makes such a build too slow to tell stuck from slow
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e",
         "inject=fdatasync:delay_enter=15s:when=1", "-p", str(service.process.pid)],
        stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: f"TracerPid:\t{tracer.pid}\n" in
                   open(f"/proc/{service.process.pid}/status").read(), what="strace")
        time.sleep(0.3)
        client = service.connect()
        body = b'{"urls":["http://127.0.0.1:9/"]}'
        client.sendall(b"POST /v1/batches HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: "
                       b"application/json\r\nContent-Length: %d\r\n\r\n%s"
                       % (service.address[1], len(body), body))

        def starved():
            manager.read()
            fed = [at for at, text in manager.messages if "WATCHDOG=1" in text]
            return time.monotonic() - fed[-1] > 3
        eventually(starved, seconds=14, what="the watchdog's hunger")
        client.close()
    finally:
        tracer.kill()
        tracer.wait()
        service.process.kill()  # as the watchdog would
        service.process.wait()
        service._gone()
    service.start()
    service.get("/readyz").expect(200)



def popen_passing(listener, *args):
    listener.set_inheritable(True)
    return subprocess.run([sys.executable, "-c", PASS_ON, str(listener.fileno()), harness.BINARY,
                           *args], pass_fds=[listener.fileno()], capture_output=True, timeout=30)


@pytest.mark.parametrize("family, address", [(socket.AF_INET, "127.0.0.1"),
                                             (socket.AF_INET6, "::1")])
def test_promise_6_a_passed_socket_is_served(origin, tmp_path, family, address):
    """Clients that came before the start are served, and none is refused over a restart."""
    listener = socket.create_server((address, 0), family=family, backlog=50)
    listener.set_inheritable(True)
    port = listener.getsockname()[1]
    early = socket.create_connection((address, port))
    host = f"[{address}]" if ":" in address else address
    early.sendall(f"GET /readyz HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", PASS_ON, str(listener.fileno()), harness.BINARY, "--listen",
             "127.0.0.1:1", "--data", tmp_path / "data"], pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE)
        assert process.stdout.readline() == f"batchfetch listening on http://{host}:{port}\n".encode()
        early.settimeout(20)
        assert early.recv(100).startswith(b"HTTP/1.1 200 ")
        early.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        early = socket.create_connection((address, port))
        early.sendall(f"GET /readyz HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        process.stdout.close()
    early.close()
    listener.close()


def test_promise_6_sockets_that_cannot_be_served_are_refused(tmp_path):
    for listener in (socket.create_server(("0.0.0.0", 0)),
                     socket.socket(socket.AF_INET, socket.SOCK_DGRAM)):
        done = popen_passing(listener, "--data", tmp_path / "data")
        assert done.returncode == 3 and b"loopback" in done.stderr, done
        listener.close()


def test_promise_6_the_unit_file_is_understood(tmp_path):
    """By systemd's own parser; and its time to stop is enough for the default drain."""
    unit = (harness.ROOT / "packaging/batchfetch.service").read_text()
    file = tmp_path / "batchfetch.service"
    file.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit, flags=re.M))
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True)
    assert done.returncode == 0 and "batchfetch.service:" not in done.stderr, done.stderr
    settings = dict(re.findall(r"^(\w+)=(.*)$", unit, re.M))
    assert settings["Type"] == "notify" and int(settings["TimeoutStopSec"]) > 30
