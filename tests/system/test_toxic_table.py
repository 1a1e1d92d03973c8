"""Promise 7: hostile and broken origins end as clear results, never as a hang, a crash or unbounded
memory. The table is toxic_table.py; here it is run, each row alone and all of them at once."""
import base64
import pathlib
import ssl
import time

import pytest

import harness
import toxic_origin
import toxic_table
from harness import SLOWER, eventually
from toxic import Backlogged
from toxic_beside import Beside
from toxic_origin import PLAIN, Server
from toxic_table import CASES, CUT, TEXT, cut_points

RETRYABLE = {"connect", "timeout", "protocol", "dns"}
RETRYABLE_STATUS = {408, 425, 429, 500, 502, 503, 504}


def behaviour(c):
    def run(conn):
        value = conn.send(c.sends) if isinstance(c.sends, bytes) else c.sends(conn)
        return "keep" if c.keep and value != "close" else value
    return run


class Origins:
    """Every listener that the table names."""

    def __init__(self, tls_dir):
        by_listener = {}
        for c in CASES:
            by_listener.setdefault(c.via, []).append(c)
        self.servers = {}
        for via, cases in by_listener.items():
            self.servers[via] = self._make(via, cases, tls_dir)

    def _make(self, via, cases, tls_dir):
        table = {c.name: behaviour(c) for c in cases if c.sends is not None}
        table["cut"] = toxic_table.cut
        if via in ("plain", "posts"):
            return Server({**table, "echo": toxic_table.sees})
        if via == "retry":
            return Server(table, host="127.0.0.51")
        if via == "backlogged":
            return Backlogged()
        if via == "deaf413":  # answers before it has read anything
            return Server(at_once=table["early-413"])
        if not via.startswith("tls:"):
            return Server(at_once=next(iter(table.values())))
        kind = via[4:]
        versions = {"1.0": ssl.TLSVersion.TLSv1, "1.1": ssl.TLSVersion.TLSv1_1,
                    "1.2": ssl.TLSVersion.TLSv1_2}
        if kind in versions:
            return Server(table, tls=toxic_origin.old_context(tls_dir, versions[kind]))
        if kind == "asking":
            return Server(table, tls=toxic_origin.asking_context(tls_dir))
        if kind == "many-names":
            return Server(table, tls=toxic_origin.many_names(tls_dir))
        if (tls_dir / f"{kind}.crt").exists():
            return Server(table, tls=toxic_origin.context(tls_dir, kind))
        return Server(at_once=next(iter(table.values())))

    def url(self, c):
        if isinstance(c.url, str):
            return c.url
        scheme, path = c.url or (None, f"/{c.name}")
        port = self.servers[c.via].port
        host = getattr(self.servers[c.via], "host", "127.0.0.1")
        scheme = scheme or ("https" if c.via.startswith("tls:") else "http")
        return f"{scheme}://{host}:{port}{path}"

    def next_url(self, c):
        """A good one that would go over the same connection, if it is kept."""
        server = self.servers[c.via]
        if c.url or getattr(server, "at_once", 1) or c.via not in ("plain", "posts", "retry", "tls:good"):
            return None
        return server.url(f"/ok?{c.name}")

    def stop(self):
        for server in self.servers.values():
            server.stop()


@pytest.fixture(scope="module")
def origins(session_origin):
    toxic_table.make_bombs()
    found = Origins(session_origin.dir / "tls")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def module_service(module_services, session_origin):
    return module_services("--ca-file", session_origin.ca_file, "--max-per-host", 400)


def slowed(settings, by=1):
    return {k: v * SLOWER * by if k.endswith("timeout_ms") else v for k, v in settings.items()}


def submit(service, origins, c):
    requests = [{"url": origins.url(c), **slowed(c.request)}]
    if origins.next_url(c):
        requests.append({"url": origins.next_url(c)})
    return service.submit(requests=requests, limits={"max_parallel": 1}, **c.batch)


def body_of(service, r):
    if r["body_url"] is None:
        return None
    if "body" in r and r["body"] is not None:
        return r["body"].encode()
    if r.get("body_base64") is not None:
        return base64.b64decode(r["body_base64"])
    return service.body(r)


def fits(want, got):
    if want is ...:
        return True
    return got is not None and want(got) if callable(want) else want == got


def wrong(service, origins, c, results, alone=True):
    """What is not as the table has it; [] if all is."""
    r = results[0]
    got = r["error"]["code"] if r["error"] else "succeeded"
    found = []

    def expect(what, holds, value):
        if not holds:
            found.append(f"{c.row} {c.name}: {what}: {value!r:.200}")
    expect("code", got in c.codes, (got, r["error"], r["http_status"]))
    expect("status", fits(c.status, r["http_status"]), r["http_status"])
    expect("truncated", c.truncated is ... or r["truncated"] == c.truncated, r["truncated"])
    expect("attempts", r["attempts"] == c.attempts, r["attempts"])
    expect("redirects", c.redirects is ... or len(r["redirects"]) == c.redirects, r["redirects"])
    if r["error"]:
        retryable = c.retryable
        if retryable is None:
            retryable = r["http_status"] in RETRYABLE_STATUS if got == "http_status" else \
                got in RETRYABLE
        expect("retryable", r["error"]["retryable"] == retryable, r["error"])
    body = body_of(service, r) if c.body is not ... else None
    expect("body", c.body is ... or fits(c.body, body), body)
    if alone:
        within = c.within + (c.request.get("timeout_ms", 0) if c.waits else 0) / 1000
        spent = r["timing"]["total_ms"] - r["timing"]["queued_ms"] - r["timing"]["limit_wait_ms"]
        expect("time", spent < within * 1000 * SLOWER, r["timing"])
    if c.check and not found:
        try:
            verdict = c.check(r, service)
            expect("check", verdict is None or verdict, verdict)
        except AssertionError as e:
            found.append(f"{c.row} {c.name}: {e!s:.300}")
    if alone and origins.next_url(c):
        other = results[1]
        expect("the next URL", other["status"] == "succeeded" and
               other.get("body", "").encode() == PLAIN, other)
        if not c.reuse:
            for later in origins.servers[c.via].asked(f"/{c.name}"):
                expect("its connection was used again", later == [], later)
    return found


SECTIONS = [(1, 2, 3, 4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15), (16, 17), (18, 19), (20, 21),
            (22, 23, 24), (25, 26), (27, 28, 29, 30, 31, 34, 35, 36), (32,)]


def test_promise_7_the_table_has_every_row():
    """The 36 kinds; those of HTTP/2 (33) are in test_toxic_h2.py."""
    assert {c.row for c in CASES} | {33} == set(range(1, 37))
    assert {row for rows in SECTIONS for row in rows} == {c.row for c in CASES}
    assert len({c.name for c in CASES}) == len(CASES) > 300


@pytest.mark.parametrize("rows", SECTIONS, ids=lambda rows: f"{rows[0]}-{rows[-1]}")
def test_promise_7_each_row_alone(service, origins, rows):
    """One after the other, but for those that only wait. After each a good URL goes to the same
    host, over the same connection where that is kept."""
    cases = [c for c in CASES if c.row in rows]
    waiting = [(c, submit(service, origins, c)) for c in cases if c.waits]
    found = []
    for c in (c for c in cases if not c.waits):
        before = peak(service)
        results = service.finish(submit(service, origins, c), include="headers,body")
        found += wrong(service, origins, c, results)
        grown = peak(service, reset=False) - before
        if not waiting and not harness.SANITIZED and grown > c.memory + 2048:
            found.append(f"{c.row} {c.name}: memory grew by {grown} KiB")
    for c, batch in waiting:
        found += wrong(service, origins, c, service.finish(batch, include="headers,body"))
    assert not found, f"{len(found)} findings:\n" + "\n".join(found)


def peak(service, reset=True):
    """KiB: what is resident, from where its peak is counted anew; or that peak."""
    if not reset:
        return service.status_kb("VmHWM")
    pathlib.Path(f"/proc/{service.process.pid}/clear_refs").write_text("5")
    return service.status_kb("VmRSS")


# ---- cut at every byte ----

@pytest.mark.parametrize("how", ["fin", "rst", "tls"])
def test_promise_7_closed_at_every_byte_of_a_response(service, origins, how):
    """With the end of the connection, with a reset, and by TLS without close_notify: what is not
    whole is no success, at any byte."""
    server = origins.servers["tls:good" if how == "tls" else "plain"]
    end = "/rst" if how == "rst" else ""
    step = 5 if harness.SANITIZED else 3 if how == "tls" else 1
    points = [(name, n) for name in CUT for n in cut_points(name)]
    points = points[::step] + [(name, cut_points(name)[-1]) for name in CUT]
    results = service.run([server.url(f"/cut/{name}/{n}{end}") for name, n in points],
                          defaults={"timeout_ms": 20_000 * SLOWER}, limits={"max_per_host": 50})
    found = []
    for (name, n), r in zip(points, results):
        code = r["error"]["code"] if r["error"] else "succeeded"
        got = code, r["http_status"], r["truncated"]
        want = toxic_table.cut_outcome(name, n, how == "tls")
        if how == "rst":  # it may overtake what was sent; but nothing makes less than all a success
            fine = code in ("protocol", "connect", "decode") or got == want
            fine = fine and (name not in ("close", "1.0") and not name.endswith("-close")
                             or code != "succeeded" or r["body_bytes"] == len(TEXT))
        else:
            fine = all(w is None and i == 2 or w == g for i, (w, g) in enumerate(zip(want, got)))
        body = body_of(service, r) or b""
        if not r["truncated"] and code == "succeeded" and name not in ("close", "1.0"):
            fine = fine and body in (TEXT, b"")
        elif r["truncated"]:
            fine = fine and TEXT.startswith(body)
        if not fine:
            found.append(f"{name} at {n}: {got}, {len(body)} bytes; wanted {want}")
    assert not found, f"{len(found)} of {len(points)}:\n" + "\n".join(found[:40])


# ---- all at once ----

def test_promise_7_all_rows_at_once_three_times(start, session_origin):
    """In one batch, and again: as alone. Then nothing is left of them: the process is
    alive, no connection is open, descriptors and memory are where they were after the first."""
    service = start("--ca-file", session_origin.ca_file, "--max-per-host", 500)
    plain = [c for c in CASES if not c.batch]
    resident, open_files = [], []
    for _ in range(2 if harness.SANITIZED else 3):
        origins = Origins(session_origin.dir / "tls")
        try:
            batch = service.submit(
                requests=[{"url": origins.url(c), **slowed(c.request, 3)} for c in plain])
            results = service.finish(batch, include="headers,body")
            found = []
            for c, r in zip(plain, results):
                found += wrong(service, origins, c, [r], alone=False)
            assert not found, f"{len(found)} findings:\n" + "\n".join(found)
        finally:
            origins.stop()
        eventually(lambda: service.metric("batchfetch_connections_open") == 0,
                   what="the end of every connection")
        resident.append(at_rest(service))
        open_files.append(descriptors(service))
    # Each multi of libcurl's has two, is made when it is needed and kept for a while.
    assert len(open_files[-1]) <= len(open_files[0]) + 8, open_files
    assert harness.SANITIZED or resident[2] - resident[1] < 6 * 1024, resident


@pytest.mark.bench
def test_promise_7_good_urls_beside_toxic_ones(session_origin):
    """The lenient form of tests/toxic/run, which has the bound of 10 %."""
    beside = Beside(session_origin)
    try:
        ratios = [toxic / alone for alone, toxic in (beside.round() for _ in range(2))]
    finally:
        beside.stop()
    assert min(ratios) <= 1.25, ratios


def at_rest(service):
    """Resident memory, in KiB. What the threads freed goes back to the system once nothing has been
    under way for a second; a sanitizer's allocator keeps it."""
    end = time.monotonic() + (0 if harness.SANITIZED else 3)
    least = service.status_kb("VmRSS")
    while time.monotonic() < end:
        service.metric("batchfetch_connections_open")  # the API's thread does so as a request ends
        time.sleep(0.1)
        least = min(least, service.status_kb("VmRSS"))
    return least


def descriptors(service):
    fds = pathlib.Path(f"/proc/{service.process.pid}/fd")
    return sorted(str(fd.readlink()) for fd in fds.iterdir() if fd.is_symlink())
