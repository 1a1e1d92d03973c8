#!/usr/bin/python3
"""Measures batchfetch and its peers side by side; see tests/bench/run."""
import argparse
import concurrent.futures
import datetime
import http.client
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import plot
from clients import ROOT, Batchfetch, Peers
from origin import Origin, hard_limit, memory_kib

SECTIONS = {}


def section(function):
    SECTIONS[function.__name__] = function
    return function


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.files = hard_limit()
        self.origin = Origin(folder, self.files)
        self.ca = folder / "root.pem"
        self.peers = Peers(folder, self.ca)
        self.samples = {}  # section → row → client → [sample]
        self.goals = []    # (section, text, value, limit, holds)

    def service(self, *options):
        return Batchfetch(self.args.binary, self.folder, *options)

    def batchfetch(self, path, query="", *options):
        with self.service(*options) as service:
            return service.fetch(path, query)

    def rounds(self, name, row, clients, rounds=None):
        """The clients in turn, several times: whatever else the machine does meets them all."""
        rows = self.samples.setdefault(name, {}).setdefault(str(row), {})
        for n in range(rounds or self.args.rounds):
            for client, fetch in clients.items():
                start = time.monotonic()
                try:
                    sample = fetch()
                except (RuntimeError, subprocess.TimeoutExpired, OSError) as error:
                    sample = {"error": str(error)[-300:]}
                rows.setdefault(client, []).append(sample)
                print(f"  {name} {row} round {n + 1} {client}: {brief(sample)}"
                      f" ({time.monotonic() - start:.1f} s)", file=sys.stderr, flush=True)

    def median(self, name, row, client, what):
        values = [s[what] for s in self.samples.get(name, {}).get(str(row), {}).get(client, [])
                  if what in s]
        return statistics.median(values) if values else None

    def goal(self, name, text, value, limit, least=False):
        """value at most limit (least: at least). None: not measured."""
        holds = None if value is None else value >= limit if least else value <= limit
        self.goals.append({"section": name, "goal": text, "value": value, "limit": limit,
                           "least": least, "holds": holds})

    def ratio(self, name, row, what, client, other):
        a, b = self.median(name, row, client, what), self.median(name, row, other, what)
        return a / b if a is not None and b else None

    def failures(self, name, client="batchfetch"):
        """Requests that failed, and runs that broke off."""
        return sum(s.get("failed", 0) + ("error" in s)
                   for row in self.samples.get(name, {}).values() for s in row.get(client, []))


def brief(sample):
    if "error" in sample:
        return "ERROR " + sample["error"]
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
                    for k, v in sample.items())


@section
def curve(b):
    """N URLs that take 2 s each, all at once, over 20 hosts: seconds from POST to completed"""
    sizes = {100: 1.10, 1000: 1.10, 5000: 1.15, 10000: 1.20, 19500: 1.30}
    if b.args.quick:
        sizes = {100: 1.10, 1000: 1.10}
    for n, limit in sizes.items():
        if n + 500 > b.files:
            continue
        path = b.origin.over_hosts(n, "wait")
        clients = {"bare": lambda: b.peers.bare(path, n), "batchfetch": lambda: b.batchfetch(path),
                   "go": lambda: b.peers.go(path)}
        slow = {"aiohttp": lambda: b.peers.aiohttp(path, 0)}
        if n <= 1000:
            slow |= {"curl -Z": lambda: b.peers.curl(path, 300),
                     "aiohttp default": lambda: b.peers.aiohttp(path, 100)}
        b.rounds("curve", n, clients)
        b.rounds("curve", n, slow, 1)
        b.goal("curve", f"{n}: wall against the bare client",
               b.ratio("curve", n, "wall", "batchfetch", "bare"), limit)
        if n >= 10000:
            b.goal("curve", f"{n}: wall against Go", b.ratio("curve", n, "wall", "batchfetch", "go"),
                   1.0)
            b.goal("curve", f"{n}: CPU against Go", b.ratio("curve", n, "cpu", "batchfetch", "go"),
                   0.75)
    b.goal("curve", "failures", b.failures("curve"), 0)


@section
def throughput(b):
    """1 KiB responses of one host over kept connections"""
    n = 10000 if b.args.quick else 100000
    path = b.origin.one_host(n, "fast")
    few = b.origin.one_host(n // 4, "fast")
    for c in (100, 200):
        if b.args.quick and c == 200:
            continue
        b.rounds("throughput", c, {
            "bare": lambda: b.peers.bare(path, c),
            "h2load": lambda: b.peers.h2load(path, c),
            "batchfetch": lambda: b.batchfetch(path, f"?limits.max_per_host={c}"),
            "go": lambda: b.peers.go(path, c),
            "go, a file each": lambda: b.peers.go(path, c, files=True)})
        b.rounds("throughput", c, {"curl -Z": lambda: b.peers.curl(few, c),
                                   "aiohttp": lambda: b.peers.aiohttp(few, c)}, 1)
        for sample in (s for row in b.samples["throughput"][str(c)].values() for s in row):
            if "wall" in sample:
                sample["per_s"] = sample["done"] / sample["wall"]
                sample["cpu_10k"] = sample["cpu"] / sample["done"] * 10000
        b.goal("throughput", f"{c}: URLs/s against Go",
               b.ratio("throughput", c, "per_s", "batchfetch", "go"), 1.2, least=True)
        b.goal("throughput", f"{c}: CPU a URL against Go",
               b.ratio("throughput", c, "cpu_10k", "batchfetch", "go"), 1.0)
        b.goal("throughput", f"{c}: CPU a URL against Go with a file each",
               b.ratio("throughput", c, "cpu_10k", "batchfetch", "go, a file each"), 0.7)
    b.goal("throughput", "failures", b.failures("throughput"), 0)


@section
def hosts(b):
    """The same over many names, and with new connections; all with 200 in parallel"""
    n = 5000 if b.args.quick else 100000
    dns = ("--dns-servers", f"127.0.0.1:{b.origin.dns_port}")
    query = "?limits.max_parallel=200&limits.max_per_host=200"
    b.rounds("hosts", n, {
        "one host": lambda: b.batchfetch(b.origin.one_host(n, "fast"), query, *dns),
        "10,000 names": lambda: b.batchfetch(b.origin.names(n, 10000, "fast"), query, *dns),
        "one host, new connections": lambda: b.batchfetch(b.origin.one_host(n, "close"), query,
                                                          *dns),
        "1,000 names, new connections": lambda: b.batchfetch(b.origin.names(n, 1000, "close"),
                                                             query, *dns)},
        min(b.args.rounds, 2))
    cpu = {c: b.median("hosts", n, c, "cpu") for c in b.samples["hosts"][str(n)]}
    if None in cpu.values():
        return
    # What a connection costs, from the two cases of one host: a connection for each request, or
    # 200 in all. 10,000 names take at least one each.
    connect = (cpu["one host, new connections"] - cpu["one host"]) / n
    b.goal("hosts", "10,000 names: CPU against one host's and the connects'",
           cpu["10,000 names"] / (cpu["one host"] + 10000 * connect), 1.5)
    b.goal("hosts", "1,000 names, new connections: CPU against one host's and the connects'",
           cpu["1,000 names, new connections"] / (cpu["one host"] + n * connect), 1.5)
    b.goal("hosts", "failures", sum(b.failures("hosts", c) for c in cpu), 0)


@section
def tls(b):
    """HTTPS, TLS 1.3, a chain of three from a CA of our own"""
    new, kept = (500, 5000) if b.args.quick else (5000, 100000)
    path = b.origin.tls(new, "close")
    ca = ("--ca-file", str(b.ca))
    b.rounds("tls", "new connections", {
        "batchfetch": lambda: b.batchfetch(path, "?limits.max_per_host=100", *ca),
        "go": lambda: b.peers.go(path, 100),
        "go, sessions": lambda: b.peers.go(path, 100, sessions=True)})
    path2 = b.origin.tls(kept, "fast")
    b.rounds("tls", "100 kept ones", {
        "batchfetch": lambda: b.batchfetch(path2, "?limits.max_per_host=100", *ca),
        "go": lambda: b.peers.go(path2, 100)})
    b.goal("tls", "CPU a new connection against Go",
           b.ratio("tls", "new connections", "cpu", "batchfetch", "go"), 1.0)
    wall = b.ratio("tls", "100 kept ones", "wall", "batchfetch", "go")
    b.goal("tls", "URLs/s over kept connections against Go", 1 / wall if wall else None, 1.0,
           least=True)
    b.goal("tls", "failures", b.failures("tls"), 0)


@section
def memory(b):
    """Resident memory, of a transfer in flight and with many queued"""
    n = 1000 if b.args.quick else 10000
    path = b.origin.over_hosts(n, "wait")
    b.rounds("memory", f"{n} in flight", {"batchfetch": lambda: b.batchfetch(path)}, 1)
    sample = b.samples["memory"][f"{n} in flight"]["batchfetch"][0]
    if "error" not in sample:
        b.goal("memory", f"KiB a transfer, {n} in flight",
               (sample["peak_kib"] - sample["idle_kib"]) / n, 16)

    def queued(count):
        with b.service("--max-per-host", "1") as service:
            service.submit(b.origin.over_hosts(count, "hang"))
            time.sleep(3)
            return {"rss_kib": memory_kib(service.pid)}

    few, many = (5000, 50000) if b.args.quick else (50000, 5000000)
    for count in (few, many):
        b.rounds("memory", f"{count} queued", {"batchfetch": lambda: queued(count)}, 1)
    a, c = (b.median("memory", f"{k} queued", "batchfetch", "rss_kib") for k in (many, few))
    b.goal("memory", f"resident, {many} queued against {few}", a / c if a and c else None, 1.2)


@section
def scale(b):
    """CPU a URL as the work grows"""
    small, large, each = (2000, 20000, 200) if b.args.quick else (10000, 1000000, 1000)
    query = "?limits.max_per_host=10"
    path = b.origin.over_hosts(small, "fast")

    def many():
        with b.service() as service:
            from clients import cpu_seconds
            cpu = cpu_seconds(service.pid)
            part = b.origin.over_hosts(each, "fast")
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                batches = list(pool.map(lambda _: service.submit(part, query), range(100)))
            done = [service.wait(batch)["request_counts"]["succeeded"] for batch in batches]
            return {"cpu": cpu_seconds(service.pid) - cpu, "done": sum(done),
                    "failed": 100 * each - sum(done)}

    b.rounds("scale", "cpu", {
        f"{small} in a batch": lambda: b.batchfetch(path, query),
        f"100 batches of {each}": many}, b.args.rounds)
    b.rounds("scale", "cpu", {f"{large} in a batch": lambda: b.batchfetch(
        b.origin.over_hosts(large, "fast"), query)}, 1)
    for row in b.samples["scale"]["cpu"].values():
        for s in row:
            if "cpu" in s:
                s["cpu_10k"] = s["cpu"] / s["done"] * 10000
    base = f"{small} in a batch"
    for other in (f"{large} in a batch", f"100 batches of {each}"):
        b.goal("scale", f"CPU a URL, {other} against {small}",
               b.ratio("scale", "cpu", "cpu_10k", other, base), 1.25)
    if "curve" in b.samples and "19500" in b.samples["curve"]:
        a, c = (b.median("curve", n, "batchfetch", "cpu") for n in (19500, 10000))
        b.goal("scale", "CPU a URL, 19500 in flight against 10000", a / 19500 / (c / 10000), 1.25)


@section
def submit(b):
    """One POST of text, on an idle service: URLs a second until the 202"""
    n = 100000 if b.args.quick else 1000000
    path = b.origin.over_hosts(n, "hang")

    def post():
        with b.service("--max-per-host", "1") as service:
            begin = time.monotonic()
            service.submit(path)
            wall = time.monotonic() - begin
            return {"wall": wall, "per_s": n / wall}

    b.rounds("submit", n, {"batchfetch": post})
    b.goal("submit", "URLs accepted a second", b.median("submit", n, "batchfetch", "per_s"), 400000,
           least=True)


def poll(address, path, rate, seconds, threads=4):
    """Latencies, s, of requests that are due at fixed times, whether the last one came back or
    not."""
    latencies = []
    begin = time.perf_counter() + 0.2

    def one(k):
        conn = http.client.HTTPConnection(address, timeout=30)
        for i in range(k, int(rate * seconds), threads):
            due = begin + i / rate
            delay = due - time.perf_counter()
            if delay > 0:
                time.sleep(delay)
            conn.request("GET", path)
            answer = conn.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status}")
            latencies.append(time.perf_counter() - due)
        conn.close()

    workers = [threading.Thread(target=one, args=(k,)) for k in range(threads)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    return sorted(latencies)


@section
def polls(b):
    """1,000 polls of a batch's status a second while it is being fetched: ms"""
    seconds = 2 if b.args.quick else 5
    n = 100000 if b.args.quick else 300000

    def run():
        with b.service() as service:
            batch = service.submit(b.origin.one_host(n, "fast"), "?limits.max_per_host=100")
            v = poll(service.address, f"/v1/batches/{batch['id']}", 1000, seconds)
            still = service.call("GET", f"/v1/batches/{batch['id']}")
            return {"p50_ms": v[len(v) // 2] * 1e3, "p99_ms": v[int(len(v) * 0.99)] * 1e3,
                    "max_ms": v[-1] * 1e3, "polls": len(v), "saturated":
                    still["status"] == "in_progress"}

    b.rounds("polls", 1000, {"batchfetch": run})
    b.goal("polls", "p99, ms", b.median("polls", 1000, "batchfetch", "p99_ms"), 20)


# ---- reports ----

COLUMNS = {"wall": ("s", "{:.2f}"), "per_s": ("URLs/s", "{:,.0f}"), "cpu": ("CPU s", "{:.2f}"),
           "cpu_10k": ("CPU s / 10,000", "{:.3f}"), "peak_kib": ("peak MiB", "{:.0f}"),
           "rss_kib": ("resident MiB", "{:.1f}"), "p50_ms": ("p50 ms", "{:.1f}"),
           "p99_ms": ("p99 ms", "{:.1f}"), "max_ms": ("max ms", "{:.1f}"),
           "failed": ("failed", "{:.0f}")}


def table(b):
    out = []
    for name, rows in b.samples.items():
        out += [f"**{name}**: {SECTIONS[name].__doc__}.", ""]
        present = [c for c in COLUMNS if any(c in s for row in rows.values()
                                             for v in row.values() for s in v)]
        out.append("| | client | " + " | ".join(COLUMNS[c][0] for c in present) + " |")
        out.append("| --- | --- |" + " ---: |" * len(present))
        for row, clients in rows.items():
            for client in clients:
                cells = []
                for c in present:
                    v = b.median(name, row, client, c)
                    if v is not None and c.endswith("_kib"):
                        v /= 1024
                    cells.append("" if v is None else COLUMNS[c][1].format(v))
                error = next((s["error"] for s in clients[client] if "error" in s), None)
                if error is not None and not any(cells):
                    cells[0] = "broke off"
                out.append(f"| {row} | {client} | " + " | ".join(cells) + " |")
        out.append("")
    return "\n".join(out)


def goals(b):
    out = ["| goal | measured | wanted | |", "| --- | ---: | ---: | --- |"]
    for g in b.goals:
        value = "not measured" if g["value"] is None else f"{g['value']:,.2f}"
        out.append(f"| {g['section']}: {g['goal']} | {value} | "
                   f"{'at least' if g['least'] else 'at most'} {g['limit']:,} | "
                   f"{'ok' if g['holds'] else 'MISSED'} |")
    return "\n".join(out) + "\n"


def machine():
    def version(*command):
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except OSError:
            return "none"
        return (result.stdout + result.stderr).strip().splitlines()[0]

    with open("/proc/cpuinfo", encoding="ascii") as file:
        model = next((line.split(":")[1].strip() for line in file if "model name" in line), "?")
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(),
            "nginx": version("nginx", "-v"), "curl": version("curl", "--version"),
            "go": version("go", "version"), "python": platform.python_version()}


def write_docs(b, text, stamp):
    page = ROOT / "docs/performance.md"
    begin, end = "<!-- figures: written by tests/bench/run --write-docs -->", "<!-- end -->"
    old = page.read_text(encoding="utf-8")
    head, _, rest = old.partition(begin)
    _, _, tail = rest.partition(end)
    m = stamp["machine"]
    words = (f"{stamp['date']}; {m['cores']} cores ({m['cpu']}), Linux {m['kernel']}; {m['nginx']}; "
             f"{m['go']}; medians of {b.args.rounds} rounds.")
    page.write_text(f"{head}{begin}\n\n{words}\n\n{text}\n{end}{tail}", encoding="utf-8")
    shutil.copy(b.args.out / "curve.svg", ROOT / "docs/performance.svg")


def main():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="Measures batchfetch and "
                                     "its peers side by side, on loopback.")
    parser.add_argument("--quick", action="store_true", help="small sizes: under a minute")
    parser.add_argument("--only", default=",".join(SECTIONS), metavar="NAME,…",
                        help="of: %(default)s")
    parser.add_argument("--rounds", type=int, help="default 3; quick: 1")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/batchfetch")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench")
    parser.add_argument("--write-docs", action="store_true", help="renew docs/performance.md")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    chosen = args.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error("no such section: " + ", ".join(unknown))
    args.out.mkdir(parents=True, exist_ok=True)

    folder = pathlib.Path(tempfile.mkdtemp(prefix="batchfetch-bench-"))
    b = None
    try:
        b = Bench(args, folder)
        for name, function in SECTIONS.items():
            if name in chosen:
                print(f"{name}: {function.__doc__}", file=sys.stderr, flush=True)
                function(b)
    finally:
        if b is not None:
            b.origin.stop()
        shutil.rmtree(folder, ignore_errors=True)

    stamp = {"date": datetime.date.today().isoformat(), "machine": machine()}
    text = goals(b) + "\n" + table(b)
    print(text)
    (args.out / "bench.md").write_text(text, encoding="utf-8")
    (args.out / "bench.json").write_text(json.dumps(
        stamp | {"goals": b.goals, "samples": b.samples}, indent=1), encoding="utf-8")
    if "curve" in b.samples:
        (args.out / "curve.svg").write_text(plot.curve({
            client: {int(n): b.median("curve", n, client, "wall")
                     for n, row in b.samples["curve"].items()
                     if client in row and b.median("curve", n, client, "wall") is not None}
            for client in ("bare", "batchfetch", "go", "curl -Z", "aiohttp", "aiohttp default")}),
            encoding="utf-8")
    if args.write_docs:
        write_docs(b, text, stamp)
    print(f"{args.out}: bench.md, bench.json" + (", curve.svg" if "curve" in b.samples else ""))
    return 0 if all(g["holds"] for g in b.goals) else 1


if __name__ == "__main__":
    sys.exit(main())
