"""A busy service, recorded: batches are submitted, fetched, read, cancelled, paused and deleted, and
the process is stopped and killed in between."""
import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time

import facts
import harness
from origin import HOSTS


class Recorded(harness.Service):
    """The real binary under record.so. `fail`: the nth sync of each start fails."""

    def __init__(self, directory, build, *args, fail=0, binary=None):
        directory.mkdir()
        self.log = directory.with_suffix(".events")
        env = {"LD_PRELOAD": str(build / "librecord.so"), "POWER_LOG": str(self.log),
               "POWER_DIR": str(directory), "POWER_FAIL": str(fail)}
        super().__init__(directory, *args, env=env)
        self.binary = binary or build / "batchfetch_small"

    def start(self, *more):
        binary, harness.BINARY = harness.BINARY, self.binary
        try:
            return super().start(*more)
        finally:
            harness.BINARY = binary

    def kill(self):
        super().kill()
        facts.drop_part(self.log)  # else nothing is understood of what the next process appends


class Clients:
    """Some threads that ask for this and that until they are told to stop."""

    def __init__(self, service, origin, seed, refusals=(503,), totals=(1, 1, 3, 10, 40, 150, 600)):
        self.service, self.origin, self.seed = service, origin, seed
        self.refusals, self.totals = refusals, totals
        self.stopping = threading.Event()
        self.numbers = iter(range(10**9))
        self.accepted = 0
        self.errors = []
        self.pauses = "/pause" in (harness.ROOT / "openapi.yaml").read_text()

    def batch(self, rng):
        total = rng.choice(self.totals)
        name = f"p{self.seed}n{next(self.numbers)}x{total}"
        sizes = [rng.choice((0, 10, 500, 3000, 20000 if total < 100 else 100)) for _ in range(total)]
        if rng.random() < 0.03:
            sizes[0] = 400000
        urls = [self.origin.url(f"/bytes/{size}?t={name}-{i}", HOSTS[i % 7])
                for i, size in enumerate(sizes)]
        doc = {"urls": urls, "name": name}
        if rng.random() < 0.3:  # one that is not over at once
            doc["limits"] = {"rate_per_host": 5}
        return doc

    def one(self, client, rng, ids):
        answer = client.request("POST", "/v1/batches", self.batch(rng))
        if answer.status in self.refusals:
            return
        batch_id = answer.expect(202).json()["id"]
        self.accepted += 1
        ids.append(batch_id)
        path = f"/v1/batches/{rng.choice(ids)}"
        what = rng.random()
        done = (200, 202, 204, 404, 409, *self.refusals)
        if what < 0.15:
            client.request("POST", path + "/cancel").expect(*done)
        elif what < 0.25:
            client.request("DELETE", path).expect(*done)
        elif what < 0.4 and self.pauses:
            client.request("POST", path + "/pause").expect(*done)
            if rng.random() < 0.5:
                client.request("POST", path + "/resume").expect(*done)
        client.request("GET", path + "?wait=1" if what > 0.8 else path).expect(*done)
        client.request("GET", path + "/results?limit=300").expect(*done)

    def run(self, number):
        rng = random.Random(self.seed * 100 + number)
        client, ids = self.service.client(), []
        try:
            while not self.stopping.is_set():
                self.one(client, rng, ids)
        except OSError:
            pass  # the process was killed
        except Exception as e:  # told by the main thread
            self.errors.append(e)

    def __enter__(self):
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(3)]
        for t in self.threads:
            t.start()
        return self

    def until(self, n):
        """Until n batches more were accepted."""
        goal, end = self.accepted + n, time.monotonic() + 60 * harness.SLOWER
        while self.accepted < goal and not self.errors:
            assert time.monotonic() < end, "no more batches are accepted"
            time.sleep(0.005)

    def __exit__(self, *_):
        self.stopping.set()
        for t in self.threads:
            t.join()
        if self.errors:
            raise self.errors[0]


def migration(directory, build, source):
    """A database of version 1 with the batches of `source`, brought up to date by a service that goes
    on with them. -> the service, stopped, and the event with which it begins"""
    service = Recorded(directory, build)
    script = pathlib.Path(__file__).with_name("version_1.py")
    subprocess.run([sys.executable, script, service.data, source.data], env=service.env, check=True)
    made = sum(1 for _ in facts.events(service.log))
    service.start()
    batches = service.get("/v1/batches?limit=1000").json()["data"]
    service.stop()
    told = facts.extract(service.log)
    for batch in batches:
        told.add(made, "accepted", batch["id"], batch["request_counts"]["total"])
    told.write(service.log)
    return service, made


def directory_at(service, part):
    """The data directory as a loss of power near this part of the recording leaves it, if all that
    was written is there, and before the log was begun to be folded into the database. The caller
    removes its parent."""
    places = facts.places_before_checkpoints(service.log, 65536)
    replay = [service.binary.parent / "power_replay", service.log, service.log.with_suffix(".facts"),
              "--at", str(places[int(part * (len(places) - 1))]), "--loss", "1"]
    text = subprocess.run(replay, stdout=subprocess.PIPE, text=True, check=True).stdout
    return pathlib.Path(text.strip()) / "data"


def damage(service, *args):
    """-> (status, text) of power_damage."""
    data, other = directory_at(service, 0.9), directory_at(service, 0.5)
    try:
        done = subprocess.run([service.binary.parent / "power_damage", data, other,
                               *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True)
        return done.returncode, done.stdout
    finally:
        shutil.rmtree(data.parent)
        shutil.rmtree(other.parent)


def record(directory, build, origin, batches, seed=1, ends=("stop", "kill", "stop"), fail=0, **more):
    """A run of the service for each of `ends`, which say how it ends. -> the service, stopped"""
    service = Recorded(directory, build, "--max-per-host", 20, fail=fail)
    if not os.path.exists(service.binary):
        raise SystemExit(f"{service.binary} is missing: build it (-DBATCHFETCH_TESTS=ON)")
    for n, end in enumerate(ends):
        service.start()
        clients = Clients(service, origin, seed * 10 + n, (500, 503) if fail else (503,), **more)
        with clients:
            clients.until(batches)
            if end == "kill":
                service.kill()
        if end == "stop":
            service.stop()
    return service
