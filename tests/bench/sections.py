"""What is measured. Each section is a function of the bench that calls bench.measure() for every
figure; a case has the same list of URLs for all its clients, which take turns within a round."""
import shutil
import tempfile
import threading
import time

from clients import (HERE, Batchfetch, Failed, Foreign, cpu_of, memory_of, run_curl, run_h2load,
                     run_program, write_list)
from origin import ADDRESSES, BODY


class Section:
    """What all sections share: the origin, the work directory, and how a client is run."""

    def __init__(self, bench):
        self.bench = bench
        self.origin = bench.origin
        self.work = bench.work
        self.quick = bench.quick

    def urls(self, urls):
        return write_list(self.work / "urls.txt", urls)

    def program(self, *command):
        self.origin.settle()
        return run_program(command, self.origin)

    def bare(self, path, conns, mode):
        return self.program(self.work / "bare", path, conns, mode)

    def go(self, path, *options):
        return self.program(self.work / "gofetch", *options, path)

    def aiohttp(self, path, tasks, limit):
        return self.program("/usr/bin/python3", HERE / "peers/aio.py", path, tasks, limit)

    def batchfetch(self, path, n, query="", options=(), body=None):
        with Batchfetch(self.bench.binary, self.work, "--max-per-host", "20000", *options) as b:
            return b.run(path, n, self.origin, query, body)

    def per_host(self, path, n, conns, *options, body=BODY):
        """batchfetch with two fetchers and so many connections in all."""
        return self.batchfetch(path, n, f"?limits.max_parallel={conns}",
                               ("--fetchers", "2", *options), body)


def curve(bench):
    """N URLs of an endpoint that takes 2 s, over 20 hosts"""
    s = Section(bench)
    sizes = (100, 5000) if s.quick else (100, 1000, 5000, 10000, 19500)
    for turn in bench.rounds():
        for n in sizes:
            if n + 400 > bench.nofile:
                continue
            urls = s.origin.slow(n)
            path = s.urls(urls)
            run = bench.measurer("curve", n, turn, urls=n)
            run("bare", lambda: s.bare(path, 0, "close"))
            run("batchfetch", lambda: s.batchfetch(path, n))
            run("go", lambda: s.go(path))
            if s.quick:
                continue
            run("aiohttp None", lambda: s.aiohttp(path, 0, "none"), once=n > 10000)
            if n <= 1000:
                run("aiohttp", lambda: s.aiohttp(path, 0, "default"), once=n > 100)
                run("curl -Z", lambda: run_curl(s.work, urls, 300, s.origin), once=n > 100)


def throughput(bench):
    """100,000 responses of 1 KiB of one host over kept connections"""
    s = Section(bench)
    n = 10000 if s.quick else 100000
    urls = s.origin.one_host(n)
    for turn in bench.rounds():
        for conns in (100, 200):
            path = s.urls(urls)
            run = bench.measurer("throughput", conns, turn, urls=n)
            run("bare", lambda: s.bare(path, conns, "keep"))
            run("batchfetch", lambda: s.per_host(path, n, conns))
            run("go", lambda: s.go(path, "-conns", conns))
            run("h2load", lambda: settled(s, run_h2load, n, conns, urls[0], s.origin))
            if s.quick and conns > 100:
                continue
            run("go, files", lambda: go_files(s, path, conns))
            if s.quick:
                continue
            run("curl -Z", lambda: settled(s, run_curl, s.work, urls, conns, s.origin), once=True)
            few = write_list(s.work / "few.txt", urls[:30000])
            bench.measurer("throughput", conns, turn, urls=30000)(
                "aiohttp None", lambda: s.aiohttp(few, conns, "none"), once=True)


def settled(s, function, *arguments):
    s.origin.settle()
    return function(*arguments)


def go_files(s, path, conns):
    """A file a body, on the disk that batchfetch's database is on."""
    directory = tempfile.mkdtemp(prefix="bodies-", dir=s.work)
    try:
        return s.go(path, "-conns", conns, "-store", directory)
    finally:
        shutil.rmtree(directory)


def hosts(bench):
    """The same over many host names, and with new connections"""
    s = Section(bench)
    n = 10000 if s.quick else 100000
    new = 5000 if s.quick else 50000
    conns = 200
    dns = f"127.0.0.1:{s.origin.dns_port}"
    origin = s.origin
    cases = (
        ("1 host", n, origin.one_host(n), "keep"),
        ("10,000 names", n, origin.many(n, n // 10), "keep"),
        ("1 host, new connections", new, origin.one_host(new, origin.port_close), "close"),
        ("1,000 names, new connections", new, origin.many(new, 1000, origin.port_close), "close"),
    )
    for turn in bench.rounds():
        for case, count, urls, mode in cases:
            path = s.urls(urls)
            run = bench.measurer("hosts", case, turn, urls=count)
            run("batchfetch", lambda: s.per_host(path, count, conns, "--dns-servers", dns))
            if not s.quick:
                run("go", lambda: s.go(path, "-conns", conns, "-dns", dns), once=True)
            if "host" in case:
                run("bare", lambda: s.bare(path, conns, mode))


def tls(bench):
    """HTTPS: new connections, and requests over 100 kept ones"""
    s = Section(bench)
    origin = s.origin
    new, n = (1000, 10000) if s.quick else (5000, 100000)
    trust = ("--ca-file", origin.ca)
    for turn in bench.rounds():
        path = s.urls(origin.one_host(new, origin.port_tls_close, "https"))
        run = bench.measurer("tls", "new connections", turn, urls=new)

        def resumed(function):
            time.sleep(0.1)  # the log's last lines
            position = origin.resumed()[2]
            result = function()
            time.sleep(0.1)
            count, again, _ = origin.resumed(position)
            return dict(result, resumed=again / count if count else 0)
        run("batchfetch", lambda: resumed(lambda: s.per_host(path, new, 100, *trust)))
        run("go", lambda: resumed(lambda: s.go(path, "-conns", 100, "-ca", origin.ca)))
        run("go, sessions", lambda: resumed(
            lambda: s.go(path, "-conns", 100, "-ca", origin.ca, "-sessions")))

        urls = origin.one_host(n, origin.port_tls, "https")
        path = s.urls(urls)
        run = bench.measurer("tls", "100 kept", turn, urls=n)
        run("batchfetch", lambda: s.per_host(path, n, 100, *trust))
        run("go", lambda: s.go(path, "-conns", 100, "-ca", origin.ca))
        run("h2load", lambda: settled(s, run_h2load, n, 100, urls[0], origin))


def memory(bench):
    """Resident memory for each transfer in flight, and with queued URLs"""
    s = Section(bench)
    n = 2000 if s.quick else 10000
    path = s.urls(s.origin.slow(n, "/5s"))

    def in_flight():
        with Batchfetch(bench.binary, s.work, "--max-per-host", "20000") as b:
            before = memory_of(b.pid, "VmRSS")
            batch = b.submit(path)
            at_peak, seen = 0, 0
            while seen < n:
                now = b.batch(batch["id"])
                seen = now["request_counts"]["in_flight"]
                at_peak = max(at_peak, memory_of(b.pid, "VmRSS"))
                if now["status"] == "completed":
                    raise Failed("it never had all of them in flight")
                time.sleep(0.02)
            time.sleep(0.5)  # connected and sent, all of them
            at_peak = memory_of(b.pid, "VmRSS")
            b.wait(batch["id"])
            peak = memory_of(b.pid, "VmHWM")
            return {"ok": n, "failed": 0, "rss": peak, "rss_before": before,
                    "in_flight_bytes": (at_peak - before) / n, "peak_bytes": (peak - before) / n}
    bench.measurer("memory", "in flight", 0, urls=n)("batchfetch", in_flight)

    def queued(count):
        path = s.work / "many.txt"
        with open(path, "w", encoding="ascii") as file:
            for start in range(0, count, 100000):
                file.writelines(
                    f"http://{ADDRESSES[i % 20]}:{s.origin.port}/100s?{i}\n"
                    for i in range(start, min(count, start + 100000)))
        try:
            with Batchfetch(bench.binary, s.work, "--max-per-host", "10") as b:
                began = time.monotonic()
                batch = b.submit(path)
                wall = time.monotonic() - began
                end = time.monotonic() + 30
                while b.batch(batch["id"])["request_counts"]["in_flight"] < 200:
                    if time.monotonic() > end:
                        raise Failed("200 transfers are not in flight after 30 s")
                    time.sleep(0.05)
                time.sleep(2)
                return {"ok": count, "failed": 0, "wall": wall, "rss": memory_of(b.pid, "VmRSS"),
                        "rss_peak": memory_of(b.pid, "VmHWM")}
        finally:
            path.unlink()
    for count in (50000, 500000 if s.quick else 5000000):
        bench.measurer("memory", f"{count:,} queued", 0, urls=count)(
            "batchfetch", lambda: queued(count))


def scale(bench):
    """CPU for each URL as the work grows"""
    s = Section(bench)
    small, large, batches, each = (10000, 50000, 20, 1000) if s.quick else (
        10000, 1000000, 100, 1000)
    conns = 200

    def one(n):
        return lambda: s.per_host(s.urls(s.origin.one_host(n)), n, conns)

    def parallel():
        """All batches at once, limited together as the single one is."""
        path = s.urls(s.origin.one_host(each))
        with Batchfetch(bench.binary, s.work, "--max-per-host", str(conns),
                        "--fetchers", "2") as b:
            s.origin.settle()
            with Foreign([*s.origin.pids(), b.pid]) as foreign:
                began, cpu = time.monotonic(), cpu_of(b.pid)
                ids = [None] * batches

                def submit(some):
                    with_own = Clone(b)
                    for i in some:
                        ids[i] = with_own.submit(path)["id"]
                    with_own.conn.close()
                threads = [threading.Thread(target=submit, args=(range(k, batches, 4),))
                           for k in range(4)]
                for t in threads:
                    t.start()
                for t in threads:
                    t.join()
                if None in ids:
                    raise Failed("a submission failed")
                done = [b.wait(i) for i in ids]
                wall, cpu = time.monotonic() - began, cpu_of(b.pid) - cpu
            for batch in done:
                b.check(batch, each, BODY)
            ok = sum(d["request_counts"]["succeeded"] for d in done)
            return {"wall": wall, "cpu": cpu, "ok": ok, "failed": batches * each - ok,
                    "rss": memory_of(b.pid, "VmHWM"), "foreign": foreign.share}
    for turn in bench.rounds():
        bench.measurer("scale", "10,000 URLs", turn, urls=small)("batchfetch", one(small))
        bench.measurer("scale", "100 batches", turn, urls=batches * each)("batchfetch", parallel)
    bench.measurer("scale", "1,000,000 URLs", 0, urls=large)("batchfetch", one(large))


class Clone(Batchfetch):
    """A second connection to a running one."""

    def __init__(self, other):  # pylint: disable=super-init-not-called
        self.port, self.pid, self.data, self.conn = other.port, other.pid, other.data, None


def submit(bench):
    """1,000,000 URLs as text, from the first byte to the 202, on an idle service"""
    s = Section(bench)
    n = 200000 if s.quick else 1000000
    path = s.urls(f"http://{ADDRESSES[i % 20]}:{s.origin.port}/100s?{i}" for i in range(n))

    def once():
        with Batchfetch(bench.binary, s.work, "--max-per-host", "1") as b:
            b.get("/healthz")
            with Foreign([*s.origin.pids(), b.pid]) as foreign:
                began, cpu = time.monotonic(), cpu_of(b.pid)
                batch = b.submit(path)
                wall, cpu = time.monotonic() - began, cpu_of(b.pid) - cpu
            ok = batch["request_counts"]["total"]
            return {"wall": wall, "cpu": cpu, "ok": ok, "failed": n - ok,
                    "rss": memory_of(b.pid, "VmHWM"), "foreign": foreign.share}
    for turn in bench.rounds():
        bench.measurer("submit", f"{n:,} URLs", turn, urls=n)("batchfetch", once)


def polls(bench):
    """1,000 GET /v1/batches/{id} a second while the engine is saturated"""
    s = Section(bench)
    seconds = 3 if s.quick else 10
    n = 200000 if s.quick else 1000000
    path = s.urls(s.origin.one_host(n))

    def once():
        with Batchfetch(bench.binary, s.work, "--max-per-host", "200", "--fetchers", "2") as b:
            batch = b.submit(path)
            end = time.monotonic() + 10
            while b.batch(batch["id"])["request_counts"]["succeeded"] == 0:
                if time.monotonic() > end:
                    raise Failed("nothing was fetched within 10 s")
                time.sleep(0.01)
            result = poll(b.port, f"/v1/batches/{batch['id']}")
            now = b.batch(batch["id"])
            if now["status"] == "completed":
                raise Failed("the batch ended before the polls did")
            return dict(result, rss=memory_of(b.pid, "VmHWM"),
                        fetched=now["request_counts"]["succeeded"])

    def poll(port, target):
        return run_program([s.work / "poll", port, target, 1000, seconds, 50], s.origin)
    for turn in bench.rounds():
        bench.measurer("polls", "1,000 a second", turn, urls=1000 * seconds)("batchfetch", once)


ALL = {f.__name__: f for f in (curve, throughput, hosts, tls, memory, scale, submit, polls)}
