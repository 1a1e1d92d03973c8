"""The clients that are compared. Each function fetches every URL of a file and returns a sample:
wall and CPU seconds, done, failed, and where it is known the resident memory in KiB."""
import http.client
import json
import pathlib
import re
import resource
import shutil
import subprocess
import tempfile
import time
import urllib.parse

from origin import cpu_seconds, memory_kib

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
TIMEOUT = 180


class Batchfetch:
    """The real binary, through its API, with everything on."""

    def __init__(self, binary, folder, *options):
        self.dir = pathlib.Path(tempfile.mkdtemp(dir=folder))
        self.log = open(self.dir / "log", "w", encoding="utf-8")
        self.process = subprocess.Popen(
            [str(binary), "--listen", "127.0.0.1:0", "--data", str(self.dir / "data"),
             "--allow-net", "127.0.0.0/8", "--max-connections", "64", "--max-per-host", "20000",
             "--fetchers", "2", "--timeout-ms", "120000", "--log-level", "warn", *options],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if "listening on" not in line:
            raise RuntimeError("batchfetch did not start: " + (self.dir / "log").read_text())
        self.address = urllib.parse.urlsplit(line.split()[-1]).netloc
        self.pid = self.process.pid
        self.idle_kib = memory_kib(self.pid)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def call(self, method, path, body=None, headers=None):
        conn = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
        try:
            conn.request(method, path, body, headers or {})
            answer = conn.getresponse()
            data = answer.read()
        finally:
            conn.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:500]}")
        return json.loads(data) if data else None

    def submit(self, path, query=""):
        with open(path, "rb") as file:
            return self.call("POST", "/v1/batches" + query, file, {"Content-Type": "text/plain"})

    def wait(self, batch):
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            batch = self.call("GET", f"/v1/batches/{batch['id']}?wait=30")
            if batch["status"] == "completed":
                return batch
        raise RuntimeError(f"not completed in {TIMEOUT} s: {batch['request_counts']}")

    def stored(self, batch):
        """How many results the API hands out."""
        conn = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
        conn.request("GET", f"/v1/batches/{batch['id']}/results",
                     headers={"Accept": "application/x-ndjson"})
        answer, n = conn.getresponse(), 0
        while data := answer.read(1 << 20):
            n += data.count(b"\n")
        conn.close()
        return n

    def fetch(self, path, query="", check=True):
        """From POST to completed."""
        cpu, begin = cpu_seconds(self.pid), time.monotonic()
        batch = self.wait(self.submit(path, query))
        wall = time.monotonic() - begin
        counts = batch["request_counts"]
        sample = {"wall": wall, "cpu": cpu_seconds(self.pid) - cpu, "done": counts["succeeded"],
                  "failed": counts["total"] - counts["succeeded"], "idle_kib": self.idle_kib,
                  "peak_kib": memory_kib(self.pid, "VmHWM")}
        if check and (stored := self.stored(batch)) != counts["total"]:
            raise RuntimeError(f"{stored} results of {counts['total']}")
        return sample


def run(args, count=None, **more):
    """A client that prints JSON, or (count given) one that is judged from outside."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = subprocess.run(args, capture_output=True, text=True, timeout=TIMEOUT, **more)
    wall = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if count is None:
        if result.returncode != 0:
            raise RuntimeError(f"{args[0]}: {result.stderr[-500:]}")
        return json.loads(result.stdout)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "done": count, "failed": 0, "output": result.stdout[-2000:],
            "status": result.returncode}


def lines(path):
    with open(path, "rb") as file:
        return sum(1 for _ in file)


class Peers:
    """Built into `folder`."""

    def __init__(self, folder, ca):
        self.folder, self.ca = folder, ca
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", folder / "bare",
                        HERE / "peers/bare.c"], check=True)
        subprocess.run(["go", "build", "-o", folder / "get", HERE / "peers/get.go"], check=True)

    def bare(self, path, connections):
        return run([self.folder / "bare", str(connections), path])

    def go(self, path, at_once=0, files=False, sessions=False):
        args = [self.folder / "get", "-list", path, "-c", str(at_once), "-ca", self.ca]
        if sessions:
            args.append("-sessions")
        if not files:
            return run(args)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return run([*args, "-dir", folder])

    def aiohttp(self, path, limit):
        return run(["/usr/bin/python3", HERE / "peers/aio.py", str(limit), path])

    def curl(self, path, at_once):
        config = self.folder / "curl.config"
        with open(path, encoding="ascii") as file, open(config, "w", encoding="ascii") as out:
            out.writelines(f'url="{url.strip()}"\noutput=/dev/null\n' for url in file)
        sample = run(["curl", "-s", "-Z", "--parallel-immediate", "--parallel-max",
                      str(min(at_once, 300)), "--cacert", self.ca, "-K", config],
                     count=lines(path))
        sample["failed"] = int(sample.pop("status") != 0)
        del sample["output"]
        return sample

    def h2load(self, path, connections):
        with open(path, encoding="ascii") as file:
            url = file.readline().strip()
        n = lines(path)
        sample = run(["h2load", "--h1", "-n", str(n), "-c", str(connections), "-t", "1", url],
                     count=n)
        good = re.search(r"(\d+) succeeded", sample.pop("output"))
        sample["failed"] = n - int(good[1]) if good else n
        del sample["status"]
        return sample
