"""1,000 good URLs by themselves, and the same beside 30 toxic origins: the 99th percentiles.

The toxic origins live in a process of their own: within ours they would compete with the client
that reads the results.
"""
import multiprocessing
import os
import random
import statistics

import harness
from harness import size
from origin import HOSTS

GOOD = 1000
TOXIC = 30


def _serve(tls_dir, pipe):
    """In the other process: the table's listeners, until the pipe closes."""
    os.nice(10)  # what the origins cost is not what the service costs
    import test_toxic_table
    import toxic_table
    toxic_table.make_bombs()
    origins = test_toxic_table.Origins(tls_dir)
    pipe.send([(c.name, origins.url(c), c.request) for c in toxic_table.CASES if not c.batch])
    try:
        pipe.recv()
    except EOFError:
        pass
    origins.stop()


class Beside:
    def __init__(self, origin, storm=False):
        self.storm, self.next = storm, 0
        self.origin = origin
        self.pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        self.process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(origin.dir / "tls", theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.cases = self.pipe.recv()
        random.Random(1).shuffle(self.cases)  # kinds in any mixture, the same each time
        self.service = harness.Service(harness.temp_dir("beside"), "--ca-file", origin.ca_file,
                                       "--max-per-host", TOXIC)
        self.service.start()
        self.toxic_done = 0
        self.good()  # connections, caches

    def stop(self):
        self.pipe.close()
        self.process.join(20)
        self.service.stop()

    def good(self):
        """p99 in ms of the fetching itself, over 50 hosts that take 0.1 s to answer."""
        urls = [self.origin.url(f"/delay/0.1?t={i}", HOSTS[i % 50]) for i in range(size(GOOD, 100))]
        results = self.service.run(urls, include="headers", limits={"max_per_host": 4,
                                                                    "max_parallel": 100})
        spent = []
        for r in results:
            assert r["status"] == "succeeded", r
            t = r["timing"]
            spent.append(t["dns_ms"] + t["connect_ms"] + t["tls_ms"] + t["first_byte_ms"] +
                         t["transfer_ms"])
        return statistics.quantiles(spent, n=100)[98]

    def beside(self):
        """The same beside 30 toxic ones; with `storm`, so many are in flight all the time."""
        cases = self.cases * 8 if self.storm else self.cases[self.next:self.next + TOXIC]
        self.next = (self.next + TOXIC) % (len(self.cases) - TOXIC)
        requests = [{"url": url, "timeout_ms": 2000, "max_body_bytes": 1 << 20, **request}
                    for _, url, request in cases]
        batch = self.service.submit(requests=requests, limits={"max_parallel": TOXIC})
        p99 = self.good()
        counts = self.service.batch(batch["id"])["request_counts"]
        assert not self.storm or counts["queued"] > 0, "they were over before the good ones"
        self.toxic_done += counts["succeeded"] + counts["failed"]
        self.service.post(f"/v1/batches/{batch['id']}/cancel")
        self.service.wait(batch["id"])
        return p99

    def round(self):
        return self.good(), self.beside()
