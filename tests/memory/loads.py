"""Loads that would fill the memory of a service without bounds. Each takes a harness.Service and
sizes, asserts that nothing failed for want of memory, and returns what was done, as text."""
import json
import pathlib
import re
import resource
import select
import socket
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).parent
PIECE = b"0123456789abcdef" * 4096
TEXT = {"Content-Type": "text/plain"}
NDJSON = {"Content-Type": "application/x-ndjson"}


class Origin:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, HERE / "origin.py"], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL)
        self.port = int(self.process.stdout.readline())

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def url(self, path, host=1):
        return f"http://127.{host >> 16 & 127}.{host >> 8 & 255}.{host & 255}:{self.port}{path}"

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def more_descriptors():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def plan(service):
    """What the service says at its start: MiB of bound and limit, and numbers of things."""
    line = re.findall(r"memory: at most ([^\"\n]*)", service.stderr())[-1]
    numbers = re.match(r"([\d.]+) MiB of ([\d.]+) MiB", line)
    return {
        "bound": float(numbers[1]), "limit": float(numbers[2]),
        "transfers": int(re.search(r"transfers [\d.]+ \((\d+)", line)[1]),
        "connections": int(re.search(r"API connections [\d.]+ \((\d+)", line)[1]),
    }


def check(service):
    """-> MiB that it has had at most; within its own bound, and that within the limit."""
    most = service.status_kb("VmHWM") / 1024
    said = plan(service)
    assert said["bound"] <= said["limit"], said
    assert most <= said["bound"], f"{most:.0f} MiB resident, {said}"
    return most


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def all_succeeded(service, batch, seconds=600):
    counts = service.wait(batch["id"], seconds)["request_counts"]
    assert counts["succeeded"] == counts["total"], counts


def bodies(service, n, size):
    """n bodies of `size` bytes come in at once and stand still before their last bytes."""
    origin = Origin()
    try:
        batch = service.submit([origin.url(f"/hold/{size}?{i}", 1 + i % 200) for i in range(n)],
                               limits={"max_per_host": 100}, defaults={"timeout_ms": 3_000_000})
        at_once = min(n, plan(service)["transfers"])
        wait_for(lambda: origin.ask("held") >= at_once, 600, f"{at_once} bodies at once")
        origin.ask("release")
        all_succeeded(service, batch)
        for i in {0, n // 2, n - 1}:
            body = service.get(f"/v1/batches/{batch['id']}/results/{i}/body", keep=1024).body
            assert body == (PIECE * (size // len(PIECE) + 1))[:size]
        service.delete(f"/v1/batches/{batch['id']}").expect(204)
        return f"{n} bodies of {size / 1e6:g} MB, {at_once} at once"
    finally:
        origin.close()


def queued(service, n, headers=TEXT):
    """One batch of n URLs at n / 10,000 hosts, which don't answer."""
    origin = Origin()
    hosts = max(1, n // 10_000)
    form = {"text/plain": "%s\n", "application/x-ndjson": '"%s"\n'}.get(headers["Content-Type"])

    def pieces():
        if form is None:
            yield b'{"urls":["http://127.0.0.1:9/"'
        for i in range(0, n, 2000):
            urls = [origin.url(f"/silent?{k}", 1 + k % hosts) for k in range(i, min(n, i + 2000))]
            yield ("".join(form % u for u in urls) if form else "".join(f',"{u}"' for u in urls)
                   ).encode()
        if form is None:
            yield b"]}"

    try:
        answer = service.client(600).request("POST", "/v1/batches", pieces(), headers).expect(202)
        counts = answer.json()["request_counts"]
        assert counts["total"] == n + (form is None), counts
        wait_for(lambda: service.batch(answer.json()["id"])["request_counts"]["in_flight"] > 0, 60,
                 "a start")
        service.delete(f"/v1/batches/{answer.json()['id']}").expect(204)
        return f"{n:,} URLs queued"
    finally:
        origin.close()


def many_hosts(service, batches, hosts):
    """Batches of URLs at hosts that are all different and don't answer; one more batch beside them
    gets its turn."""
    origin = Origin()
    try:
        ids = []
        for b in range(batches):
            text = "".join(origin.url("/silent\n", 1 + (b * hosts + i) % (100 << 16))
                           for i in range(hosts))
            answer = service.post("/v1/batches" "?defaults.timeout_ms=2000&retry.max_attempts=1",
                                  text, TEXT).expect(202)
            ids.append(answer.json()["id"])
        last = service.submit([origin.url(f"/10?{i}", 0x7a0001) for i in range(10)], priority=9)
        all_succeeded(service, last)
        for b in ids:
            service.delete(f"/v1/batches/{b}")
        return f"{batches} batches x {hosts} hosts"
    finally:
        origin.close()


class Reader:
    """A request whose answer is read one byte at a time."""

    def __init__(self, service, path, accept):
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(600)
        self.sock.connect(service.address)
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{service.address[1]}\r\n"
                          f"Accept: {accept}\r\nConnection: close\r\n\r\n".encode())
        self.got = b""

    def read(self):
        self.sock.setblocking(False)
        try:
            self.got += self.sock.recv(1)
        except BlockingIOError:
            pass

    def rest(self):
        """The whole answer's body."""
        self.sock.setblocking(True)
        self.sock.settimeout(120)
        pieces = [self.got]
        while piece := self.sock.recv(1 << 20):
            pieces.append(piece)
        head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        if b"chunked" not in head:
            assert len(body) == int(re.search(rb"Content-Length: (\d+)", head)[1]), len(body)
            return body
        out, at = [], 0
        while True:
            end = body.index(b"\r\n", at)
            n = int(body[at:end], 16)
            if n == 0:
                return b"".join(out)
            out.append(body[end + 2:end + 2 + n])
            assert body[end + 2 + n:end + 4 + n] == b"\r\n"
            at = end + 4 + n


def readers(service, n, seconds, results=10_000, large=10_000_000):
    """n clients ask for a page of 10,000 results, all results as NDJSON, a 10 MB body raw or in
    JSON, and read a byte a second; some are read to their end then, and all is there."""
    origin = Origin()
    origin.ask("release")
    try:
        batch = service.submit([origin.url(f"/100?{i}", 1 + i % 50) for i in range(results)])
        body = service.submit([origin.url(f"/{large}")])
        all_succeeded(service, batch)
        all_succeeded(service, body)
        b, c = batch["id"], body["id"]
        asked = [(f"/v1/batches/{b}/results?limit=10000", "application/json"),
                 (f"/v1/batches/{b}/results", "application/x-ndjson"),
                 (f"/v1/batches/{c}/results/0/body", "*/*"),
                 (f"/v1/batches/{b}/results?limit=10000&order=index&include=body,headers", "*/*"),
                 (f"/v1/batches/{c}/results?include=body", "application/x-ndjson")]
        n = min(n, plan(service)["connections"] - 8)
        all_of_them = [Reader(service, *asked[i % len(asked)]) for i in range(n)]
        wait_for(lambda: [r.read() for r in all_of_them] and all(r.got for r in all_of_them), 600,
                 "a first byte for each")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for r in all_of_them:
                r.read()
            time.sleep(1)
        service.get("/healthz").expect(200)
        for k in [*range(5), *range(n - 5, n)]:
            text = all_of_them[k].rest()
            kind = asked[k % len(asked)]
            if "body" == kind[0].split("/")[-1]:
                assert len(text) == large
            elif c in kind[0]:
                assert len(json.loads(text)["body"]) == large
            else:
                rows = [json.loads(line) for line in text.splitlines()] \
                    if "ndjson" in kind[1] else json.loads(text)["data"]
                page_end = results if len(rows) < results and "ndjson" not in kind[1] else len(rows)
                assert sorted({r["index"] for r in rows}) == sorted(r["index"] for r in rows)
                assert len(rows) == results or len(text) > 8 << 20, (len(rows), page_end)
        for r in all_of_them:
            r.sock.close()
        for i in (b, c):
            service.delete(f"/v1/batches/{i}").expect(204)
        return f"{n} slow readers"
    finally:
        origin.close()


class Uploader:
    """A submission that is sent in chunks. It may be answered before it is complete."""

    def __init__(self, service):
        self.sock = socket.create_connection(service.address, timeout=120)
        self.answer = b""
        self.sock.sendall(
            b"POST /v1/batches?retry.max_attempts=1 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
            b"Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
            % service.address[1])

    def send(self, data):
        """One chunk; the last one if it is empty."""
        if not self.answer and select.select([self.sock], [], [], 0)[0]:
            self.answer = self.sock.recv(65536)
        if not self.answer:
            try:
                self.sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))
            except OSError:
                self.answer = self.sock.recv(65536)

    def status(self):
        while b"}" not in self.answer:
            piece = self.sock.recv(65536)
            assert piece, self.answer
            self.answer += piece
        self.sock.close()
        return int(self.answer.split(b" ", 2)[1])


def uploaders(service, n, seconds, burst=0):
    """n clients send a submission, each first `burst` bytes of it at once, then a byte a second;
    then all finish. Each gets 202, or 503 with Retry-After."""
    url = b"http://127.0.0.1:9/" + b"x" * 60 + b"\n"
    n = min(n, plan(service)["connections"] - 8)
    all_of_them = [Uploader(service) for _ in range(n)]
    for u in all_of_them:
        u.send((url * (burst // len(url) + 1))[:-7])  # the last line is not complete
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for u in all_of_them:
            u.send(b"y")
        time.sleep(1)
    service.get("/healthz").expect(200)
    refused, ids = 0, []
    for i, u in enumerate(all_of_them):
        if time.monotonic() > end + 5:  # a silent client is let go after 30 s
            end = time.monotonic()
            for other in all_of_them[i:]:
                other.send(b"y")
        u.send(b"\n" + url)
        u.send(b"")
        status = u.status()
        if status == 503:
            assert b"\r\nRetry-After: " in u.answer, u.answer
            refused += 1
        else:
            assert status == 202, u.answer
            ids.append(re.search(rb'"id":"(\w+)"', u.answer)[1].decode())
    assert ids
    for i in ids:
        service.delete(f"/v1/batches/{i}")
    return f"{n} slow uploaders ({refused} got 503, Retry-After)"


def one_line(service, size):
    """A line of an NDJSON submission that does not end is refused, unread."""
    piece = b'"http://a.test/' + b"x" * 65000

    def pieces():
        for _ in range(size // len(piece)):
            yield piece

    try:
        service.client(600).request("POST", "/v1/batches", pieces(), NDJSON).expect(413)
    except (BrokenPipeError, ConnectionError):
        pass  # it is cut off
    service.get("/healthz").expect(200)
    return f"a line of {size / 1e6:g} MB"


def at_once(*loads):
    """Runs calls at the same time; -> their texts."""
    out, errors = [], []

    def run(load):
        try:
            out.append(load())
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(load,)) for load in loads]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return "; ".join(out)
