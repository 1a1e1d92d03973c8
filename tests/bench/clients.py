"""The clients under measurement: batchfetch through its API, and the peers as programs."""
import http.client
import json
import os
import pathlib
import re
import select
import shutil
import subprocess
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")
LIMIT_S = 300  # no single measurement takes longer


class Failed(Exception):
    """A measurement that is none."""


def cpu_of(pid):
    """User and system seconds of a process so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_of(pid, name):
    """VmRSS or VmHWM of a process, in bytes."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    match = re.search(rf"^{name}:\s+(\d+) kB", text, re.M)
    return int(match[1]) * 1024 if match else 0


class Foreign:
    """The share of the machine's processors that went to others than us, within `with`."""

    def __init__(self, pids):
        self.pids = pids
        self.extra = 0  # seconds of a process of ours that is gone

    def _times(self):
        cpu = [int(n) / TICK for n in
               pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        ours = time.process_time() + sum(cpu_of(pid) for pid in self.pids)
        return sum(cpu), sum(cpu) - cpu[3] - cpu[4] - ours

    def __enter__(self):
        self.before = self._times()
        return self

    def __exit__(self, *_):
        total, foreign = (b - a for a, b in zip(self.before, self._times()))
        self.share = max(0.0, (foreign - self.extra) / total) if total > 0 else 0.0


def write_list(path, urls):
    with open(path, "w", encoding="ascii") as file:
        file.writelines(url + "\n" for url in urls)
    return path


# ---- the peers ----

def build_peers(directory, cache):
    """Compiles what has to be compiled."""
    env = dict(os.environ, GOCACHE=str(cache), GOFLAGS="", GO111MODULE="off",
               CGO_ENABLED="0")
    for command in (["gcc", "-std=c17", "-O2", "-o", "bare", HERE / "peers/bare.c"],
                    ["gcc", "-std=c17", "-O2", "-o", "poll", HERE / "peers/poll.c"],
                    ["go", "build", "-o", "gofetch", HERE / "peers/get.go"]):
        subprocess.run(list(map(str, command)), cwd=directory, env=env, check=True)


def run_program(command, origin, parse=None):
    """Runs a peer. One that prints JSON measures itself, from before it reads its list; of another
    the whole process counts, and `parse` reads its counts from what it printed (stdout, stderr)."""
    with Foreign(origin.pids()) as foreign, tempfile.TemporaryFile() as out, \
            tempfile.TemporaryFile() as err:
        began = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=err,
                                   stdin=subprocess.DEVNULL)
        peak = [0]
        ended = threading.Event()

        def watch():
            while not ended.wait(0.03):
                try:
                    peak[0] = max(peak[0], memory_of(process.pid, "VmHWM"))
                except (OSError, ValueError):
                    return
        watcher = threading.Thread(target=watch)
        watcher.start()
        killer = threading.Timer(LIMIT_S, process.kill)
        killer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - began
        except BaseException:  # Ctrl-C, SIGTERM: nothing of ours stays
            process.kill()
            process.wait()
            raise
        finally:
            killer.cancel()
            ended.set()
            watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        foreign.extra = usage.ru_utime + usage.ru_stime
        for file in out, err:
            file.seek(0)
        text, errors = out.read().decode(), err.read().decode()
    if process.returncode != 0 and (parse is None or process.returncode < 0):
        raise Failed(f"{command[0]}: status {process.returncode}: {errors[-500:]}")
    if parse is None:
        result = json.loads(text)
        if result["failed"]:
            result["complaint"] = errors[-300:]
    else:
        result = dict(parse(text, errors), wall=wall, cpu=foreign.extra)
    return dict(result, rss=peak[0], foreign=foreign.share)


def run_curl(work, urls, parallel, origin):
    """curl -Z; bodies are thrown away. It reports each transfer's status on stdout."""
    config = work / "curl.conf"
    with open(config, "w", encoding="ascii") as file:
        file.write(f'parallel\nparallel-max = {parallel}\nparallel-immediate\nsilent\n'
                   'write-out = "%{http_code}\\n"\n')
        stem = urls[0].removesuffix("0")
        if urls[-1] == f"{stem}{len(urls) - 1}":  # one pattern, not 100,000 options to parse
            file.write(f'url = "{stem}[0-{len(urls) - 1}]"\noutput = "/dev/null"\n')
        else:
            file.writelines(f'url = "{url}"\noutput = "/dev/null"\n' for url in urls)

    def parse(text, _):
        ok = text.split().count("200")
        return {"ok": ok, "failed": len(urls) - ok}
    return run_program(["curl", "-K", config], origin, parse)


def run_h2load(n, conns, url, origin):
    def parse(text, errors):
        match = re.search(r"(\d+) succeeded, (\d+) failed", text)
        if not match:
            raise Failed("h2load: " + (text + errors)[-500:])
        ok = int(re.search(r"status codes: (\d+) 2xx", text)[1])
        return {"ok": ok, "failed": n - ok}
    return run_program(["h2load", "--h1", f"-n{n}", f"-c{conns}", "-t1", url], origin, parse)


# ---- batchfetch ----

class Batchfetch:
    """The real binary, on a free port, with a new data directory; gone after `with`."""

    def __init__(self, binary, work, *options):
        self.data = pathlib.Path(tempfile.mkdtemp(prefix="data-", dir=work))
        self.command = [str(binary), "--listen", "127.0.0.1:0", "--data", str(self.data),
                        "--allow-net", "127.0.0.0/8", "--log-level", "warn",
                        "--max-connections", "64", "--timeout-ms", "120000",
                        "--connect-timeout-ms", "60000", *map(str, options)]
        self.process = None
        self.conn = None

    def __enter__(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith("BATCHFETCH_")}
        self.stderr = open(self.data / "stderr", "wb")
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=self.stderr,
                                        stdin=subprocess.DEVNULL, env=env)
        line = b""
        if select.select([self.process.stdout], [], [], 30)[0]:
            line = self.process.stdout.readline()
        match = re.fullmatch(rb"batchfetch listening on http://127\.0\.0\.1:(\d+)\n", line)
        if not match:
            self.__exit__()
            raise Failed(f"batchfetch did not start: {line!r}")
        self.port = int(match[1])
        self.pid = self.process.pid
        return self

    def __exit__(self, *_):
        if self.conn is not None:
            self.conn.close()
        # What it keeps is thrown away, and what is in flight would be waited for.
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.stderr.close()
        shutil.rmtree(self.data, ignore_errors=True)

    def log(self):
        return (self.data / "stderr").read_text(errors="replace")[-1000:]

    def connection(self):
        if self.conn is None:
            self.conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        return self.conn

    def get(self, path, headers=None):
        conn = self.connection()
        conn.request("GET", path, headers=headers or {})
        answer = conn.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise Failed(f"GET {path}: {answer.status} {data[:500]!r}")
        return data

    def batch(self, batch_id, wait=0):
        return json.loads(self.get(f"/v1/batches/{batch_id}" + (f"?wait={wait}" if wait else "")))

    def submit(self, path, query=""):
        """Posts a file of URLs, sent by the kernel; -> the batch."""
        conn = self.connection()
        conn.putrequest("POST", "/v1/batches" + query, skip_accept_encoding=True)
        conn.putheader("Content-Type", "text/plain")
        conn.putheader("Content-Length", str(os.path.getsize(path)))
        conn.endheaders()
        with open(path, "rb") as file:
            conn.sock.sendfile(file)
        answer = conn.getresponse()
        data = answer.read()
        if answer.status != 202:
            raise Failed(f"POST: {answer.status} {data[:500]!r}")
        return json.loads(data)

    def wait(self, batch_id, seconds=LIMIT_S):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            batch = self.batch(batch_id, 60)
            if batch["status"] == "completed":
                return batch
        raise Failed(f"not completed after {seconds} s: {batch['request_counts']} {self.log()}")

    def run(self, path, n, origin, query="", body=None):
        """A batch of the file's n URLs, from POST to completed with all results stored; then, off
        the clock, checks that they are. `body`: what each must be."""
        connects = origin.settle()
        pids = origin.pids()
        before = memory_of(self.pid, "VmRSS")
        with Foreign([*pids, self.pid]) as foreign:
            began, cpu = time.monotonic(), cpu_of(self.pid)
            batch = self.submit(path, query)
            batch = self.wait(batch["id"])
            wall, cpu = time.monotonic() - began, cpu_of(self.pid) - cpu
        # Its kept connections still count: the status asks on one of its own.
        connects = origin.status()[1] - connects - 1
        counts = batch["request_counts"]
        if counts["total"] != n:
            raise Failed(f"{counts['total']} requests of {n} URLs")
        self.check(batch, n, body)
        result = {"wall": wall, "cpu": cpu, "ok": counts["succeeded"], "connects": connects,
                  "failed": n - counts["succeeded"], "rss": memory_of(self.pid, "VmHWM"),
                  "rss_before": before, "foreign": foreign.share}
        if result["failed"]:
            result["complaint"] = self.first_error(batch)
        return result

    def first_error(self, batch):
        page = json.loads(self.get(f"/v1/batches/{batch['id']}/results?status=failed&limit=1"))
        return json.dumps(page["data"][0]["error"] if page["data"] else None)

    def check(self, batch, n, body):
        """Exactly one stored result a URL, as the counts have it."""
        conn = self.connection()
        conn.request("GET", batch["results_url"], headers={"Accept": "application/x-ndjson"})
        answer = conn.getresponse()
        seen, succeeded = bytearray(n), 0
        number = re.compile(rb'"index": ?(\d+)')
        for line in answer:
            seen[int(number.search(line, 0, 200)[1])] += 1
            succeeded += b'"status":"succeeded"' in line
        if seen.count(1) != n:
            raise Failed(f"{seen.count(0)} results of {n} are missing")
        if succeeded != batch["request_counts"]["succeeded"]:
            raise Failed(f"{succeeded} results succeeded, {batch['request_counts']}")
        if body is not None:
            for index in range(0, n, max(1, n // 50)):
                got = self.get(f"/v1/batches/{batch['id']}/results/{index}/body")
                if got != body:
                    raise Failed(f"body {index} is {got[:80]!r}")
