"""What the service is for: large batches, in bounded memory, at full speed."""
import collections
import json
import os
import random
import socket
import threading
import time

import pytest

import harness
from harness import JSON, NDJSON, TEXT, Foreign, check_complete, query, size
from origin import DEAD_HOST, HOSTS, content

MIXED = size(10000)


def mixed(origin):
    """-> (url, expected status or error code, expected body or None, hits [(host, uri)]) a URL."""
    rnd = random.Random(7)
    for i in range(MIXED):
        host = HOSTS[i % 50]
        other = HOSTS[(i * 7 + 3) % 50]
        kind = rnd.randrange(100)
        if kind < 45:
            n = rnd.choice([0, 1, 100, 1000, 5000, 20000])
            uri = f"/bytes/{n}?t=m{i}"
            yield origin.url(uri, host), 200, content(n, f"m{i}"), [(host, uri)]
        elif kind < 60:
            status = rnd.choice([200, 201, 204, 400, 403, 404, 410, 429, 500, 503])
            uri = f"/status/{status}?m{i}"
            body = b"" if status == 204 else b"status %d" % status
            yield origin.url(uri, host), status, body, [(host, uri)]
        elif kind < 72:
            uri = f"/bytes/64?t=r{i}"
            via = "/redirect-to?url=" + origin.url(uri, other)
            yield origin.url(via, host), 200, content(64, f"r{i}"), [(host, via), (other, uri)]
        elif kind < 85:
            uri = f"/delay/0.{rnd.randrange(10, 99)}?m{i}"
            yield origin.url(uri, host), 200, None, [(host, uri)]
        elif kind < 92:
            yield f"http://{DEAD_HOST}:9/{i}", "connect", None, []
        elif kind < 96:
            yield f"http://nowhere-{i % 20}.test/{i}", "dns", None, []
        else:
            yield rnd.choice(["nonsense", "ftp://a.test/", f"http://a b/{i}"]), "invalid_url", \
                None, []


@pytest.mark.slow
def test_ten_thousand_mixed_urls_over_fifty_hosts_give_exactly_their_results(start, origin,
                                                                             tmp_path):
    expected = list(mixed(origin))
    path = tmp_path / "urls.txt"
    path.write_text("\n".join(["# ten thousand", *(e[0] for e in expected)]) + "\n")
    service = start("--max-parallel", 300, "--max-per-host", 10)
    with open(path, "rb") as file:
        answer = service.post("/v1/batches" + query(ignore_invalid_urls=True, name="urls.txt"),
                              file, {"Content-Type": TEXT})
    batch = answer.expect(202).json()
    assert batch["request_counts"]["total"] == MIXED
    batch = service.wait(batch["id"], 120)
    results = service.get(f"/v1/batches/{batch['id']}/results?include=body",
                          {"Accept": NDJSON}).ndjson()
    check_complete(batch, results)
    for r in results:
        url, outcome, body, _ = expected[r["index"]]
        assert r["url"] == url
        if isinstance(outcome, str):
            assert r["status"] == "failed" and r["error"]["code"] == outcome, r
            continue
        assert r["http_status"] == outcome, r
        assert r["status"] == ("succeeded" if outcome < 400 else "failed"), r
        if body is not None:
            assert r["body"].encode() == body, r
    # The origin saw each request once, and never too many at once.
    wanted = collections.Counter(hit for e in expected for hit in e[3])
    seen = collections.Counter((h.host, h.uri) for h in origin.hits(sum(wanted.values())))
    assert seen == wanted
    peaks = origin.peaks()
    assert peaks.pop("*") <= 300
    assert set(peaks) == set(HOSTS) and max(peaks.values()) <= 10, peaks
    # The pages say the same as the stream.
    assert service.results(batch["id"], include="body") == results


def million(origin, media, n):
    """A file of n URLs: few hosts, slow answers, so that little is fetched meanwhile."""
    head, tail, form = {TEXT: ("", "", "%s\n"), NDJSON: ("", "", '"%s"\n'),
                        JSON: ('{"limits": {"max_parallel": 20}, "urls": [\n',
                               '"http://127.0.0.1:9/"]}', '"%s",\n')}[media]
    yield head.encode()
    urls = [origin.url("/delay/20?", h) for h in HOSTS]
    for at in range(0, n, 10000):
        yield "".join(form % f"{urls[i % 50]}{i}" for i in range(at, at + 10000)).encode()
    yield tail.encode()


def upload(service, origin, path, media):
    """Posts the file. -> (batch, seconds from the last byte sent to the first fetch)"""
    origin.reset()
    params = {} if media == JSON else {"limits.max_parallel": 20}
    sock = socket.socket()
    # What waits in buffers when the last byte is "sent" is still to be uploaded: keep it small.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    sock.settimeout(60 * harness.SLOWER)
    sock.connect(service.address)
    with sock, open(path, "rb") as file:
        sock.sendall(f"POST /v1/batches{query(**params)} HTTP/1.1\r\nHost: 127.0.0.1:"
                     f"{service.address[1]}\r\nContent-Type: {media}\r\n"
                     f"Content-Length: {os.path.getsize(path)}\r\n\r\n".encode())
        sock.sendfile(file)
        sent = time.time()
        (status, _, body), = harness.read_answers(sock, ["POST"])
    assert status == 202, body
    first = harness.eventually(origin.first_at, what="the first fetch")
    return json.loads(body), first - sent


@pytest.mark.slow
@pytest.mark.parametrize("media", [TEXT, JSON, NDJSON])
def test_a_million_urls_in_one_post_take_little_memory_and_start_at_once(start, origin, tmp_path,
                                                                         media):
    n = size(1_000_000)
    path = tmp_path / "million"
    with open(path, "wb") as file:
        file.writelines(million(origin, media, n))
    delays = []
    for _ in range(3):  # memory must hold each time; a busy machine gets another try for the time
        service = start("--max-parallel", 20)
        service.get("/healthz").expect(200)
        before = service.status_kb("VmRSS")
        with Foreign(service.process.pid, *origin.pids()) as foreign:
            batch, delay = upload(service, origin, path, media)
        assert batch["request_counts"]["total"] == n + (media == JSON)
        delays.append(delay * (1 - foreign.share))
        time.sleep(0.5)  # what comes after the acceptance may need memory too
        grown = service.status_kb("VmHWM") - before
        print(f"{media}: first fetch {delay * 1000:.0f} ms after the last byte, "
              f"{grown / 1024:.1f} MiB grown; others had {foreign.share:.0%} of the machine")
        assert origin.peaks()["*"] <= 20
        if not harness.SANITIZED:  # sanitizers multiply memory
            assert grown < 64 * 1024, f"{grown / 1024:.0f} MiB"
        service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)
        service.get("/healthz").expect(200)
        service.delete(f"/v1/batches/{batch['id']}").expect(204)
        service.stop()
        if delays[-1] < 0.1:
            break
    if not harness.SANITIZED:  # nor do they measure time
        assert min(delays) < 0.1, f"first fetch {min(delays):.3f} s after the upload's end"


@pytest.mark.slow
@pytest.mark.bench
def test_two_thousand_slow_urls_at_once_take_little_longer_than_one(start, origin):
    """Less than 2.5 s; where others use the processors too, what is over 2 s is reckoned down by
    their share."""
    took = []
    for _ in range(4):  # a busy machine gets another try
        service = start("--max-per-host", 2000, "--max-parallel", 4000)
        origin.reset()
        with Foreign(service.process.pid, *origin.pids()) as foreign:
            began = time.monotonic()
            batch = service.submit([origin.url(f"/delay/2?{i}") for i in range(2000)])
            batch = service.wait(batch["id"])
            wall = time.monotonic() - began
        took.append(2 + (wall - 2) * (1 - foreign.share))
        print(f"2,000 URLs of 2 s each: {wall:.2f} s; "
              f"others had {foreign.share:.0%} of the machine")
        assert batch["request_counts"]["succeeded"] == 2000
        assert origin.peaks()["*"] <= 2000
        service.stop()
        if took[-1] < 2.5:
            break
    assert min(took) < 2.5


@pytest.mark.slow
def test_memory_does_not_grow_with_what_passes_through(start, origin):
    """30,000 requests and 100 MB of bodies; then half as much again: nothing more is kept."""
    service = start("--max-per-host", 50)

    def go(n):
        batch = service.submit([origin.url(f"/bytes/5000?t={i}", HOSTS[i % 20]) for i in range(n)])
        service.wait(batch["id"])
        service.get(f"/v1/batches/{batch['id']}/results", {"Accept": NDJSON}, keep=0).expect(200)
        service.delete(f"/v1/batches/{batch['id']}").expect(204)
        return service.status_kb("VmRSS")

    go(size(10000))
    first = go(size(10000))
    last = go(size(10000))
    if not harness.SANITIZED:  # freed memory is kept aside to find uses after it
        assert last - first < 16 * 1024, f"{first} KiB, then {last} KiB"


@pytest.mark.slow
def test_the_api_answers_quickly_while_much_is_fetched(start, origin):
    service = start("--max-per-host", 40)
    batch = service.submit([origin.url(f"/bytes/2000?t={i}", HOSTS[i % 10])
                            for i in range(size(15000))])
    stop = threading.Event()
    times = []

    def poll():
        client = service.client()
        while not stop.is_set():
            began = time.monotonic()
            client.request("GET", f"/v1/batches/{batch['id']}").expect(200)
            times.append(time.monotonic() - began)
            stop.wait(0.01)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        service.wait(batch["id"])
    finally:
        stop.set()
        thread.join()
    times.sort()
    assert len(times) > 10
    assert times[len(times) * 9 // 10] < 0.25 * harness.SLOWER, times[-5:]
