"""Kills the service again and again under load, and checks after each generation of kills that
nothing that was confirmed is lost."""
import dataclasses
import random
import subprocess
import time

import checker
import load as loads
from history import OK, History

import harness


@dataclasses.dataclass
class Stats:
    kills: int = 0
    in_recovery: int = 0
    batches: int = 0
    requests: int = 0
    results_read: int = 0
    answers: int = 0
    ready_s: list = dataclasses.field(default_factory=list)

    def text(self):
        slowest = max(self.ready_s, default=0)
        median = sorted(self.ready_s)[len(self.ready_s) // 2] if self.ready_s else 0
        return (f"{self.kills} kills ({self.in_recovery} of them before it was ready), "
                f"{self.batches} batches, {self.requests} requests, {self.answers} answers with "
                f"counts and {self.results_read} results read on the way; ready again after "
                f"{1000 * median:.0f} ms (median), {1000 * slowest:.0f} ms (slowest)")


def start_and_kill(service, rng):
    """A crash while it recovers."""
    with open(service.stderr_path, "ab") as stderr:
        process = subprocess.Popen([*service.prefix, harness.BINARY, "--listen", "127.0.0.1:0",
                                    "--data", service.data, *service.args],
                                   stdout=subprocess.DEVNULL, stderr=stderr, env=service.env)
    time.sleep(rng.uniform(0, 0.06))
    process.kill()
    process.wait()


def kill(service, load):
    """In the middle of everything: the threads see their connections break."""
    load.stop.set()  # first: a thread that sees the end must know that it is meant
    service.process.kill()
    load.end()
    service.process.wait()
    service._gone()
    service.no_reports()


def check_states(history, service):
    """Confirmed steering holds over the restart."""
    client = service.client()
    for batch_id in history.known():
        steers = history.steers_of(batch_id)
        if not steers or steers[-1].outcome != OK:
            continue
        batch = client.request("GET", f"/v1/batches/{batch_id}").expect(200).json()
        history.saw_batch(batch)
        allowed = {"pause": ("paused", "completed"), "cancel": ("cancelling", "cancelled", "completed"),
                   "resume": ("queued", "in_progress", "completed")}[steers[-1].verb]
        if batch["status"] not in allowed:
            history.wrong(f"I10: {steers[-1].verb} of {batch_id} was confirmed; after the restart "
                          f"it is {batch['status']}")


def drain(history, service, seconds=120):
    """Everything goes on to its end."""
    client = service.client()
    end = time.monotonic() + seconds * harness.SLOWER
    while True:
        open_ones = []
        for status in ("queued", "in_progress", "paused", "cancelling"):
            for batch in list(checker.pages(
                    lambda method, path: client.request(method, path, keep=1 << 30).json(),
                    f"/v1/batches?status={status}")):
                history.saw_batch(batch)
                open_ones.append(batch["id"])
                if status == "paused":
                    client.request("POST", f"/v1/batches/{batch['id']}/resume")
        if not open_ones:
            return
        if time.monotonic() > end:
            history.wrong(f"I3: {len(open_ones)} batches do not end: {open_ones[:3]}")
            return
        client.request("GET", f"/v1/batches/{open_ones[0]}?wait=1")


def settled_database(service):
    """Rows of deleted batches go in the background: until they are gone, or too long has passed."""
    end = time.monotonic() + 20 * harness.SLOWER
    while True:
        service.stop()
        database = checker.read_database(service.data)
        left = [state for _, state, _ in database["batches"].values() if state not in (3, 4)]
        if not (left or database["attempt"]) or time.monotonic() > end:
            return database
        service.start()
        time.sleep(0.3)


def list_steps():
    """The named steps of a build with FAULTS."""
    out = subprocess.run([harness.BINARY], env={"BATCHFETCH_FAULT_LIST": "1", "HOME": "/"},
                         capture_output=True, check=True).stdout.decode()
    return sorted(set(out.split()))


def die_at(service, load, step, passage, seconds):
    """-> whether the service died there: at its start, under load, or at its stop."""
    service.env["BATCHFETCH_FAULT"] = f"{step}:{passage}"
    try:
        service.start()
    except AssertionError:
        died = service.process.wait(10)
        service._gone()
        return died == -9
    finally:
        del service.env["BATCHFETCH_FAULT"]
    load.may_break = True
    load.start()
    end = time.monotonic() + seconds
    while service.process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    service.process.terminate()
    died = service.process.wait(60)
    load.stop.set()
    load.end()
    load.may_break = False
    service._gone()
    service.no_reports()
    return died == -9


def all_steps(directory, origin, seed, stats, say):
    """One kill and more at each step that the program has. -> violations"""
    rng = random.Random(seed)
    history = History()
    service = harness.Service(directory, "--max-per-host", 20, "--drain-timeout", "1s")
    load = loads.Load(history, service, origin, rng.random())
    origin.reset()
    steps = list_steps()
    steps.sort(key=lambda step: not step.startswith("store.schema"))  # only in a new directory
    missed = []
    for step in steps:
        fresh = step.startswith("store.schema")
        for passage in (1, rng.randrange(2, 30))[:1 if fresh else 2]:
            for file in service.data.glob("*") if fresh and service.data.exists() else ():
                file.unlink()
            died = die_at(service, load, step, passage, 2)
            stats.kills += died
            history.crashes += 1
            if passage == 1 and not died:
                missed.append(step)
            began = time.monotonic()
            service.start()
            stats.ready_s.append(time.monotonic() - began)
            check_states(history, service)
            loads.replay_unknown(history, service.client())
            harness.EXCHANGES.clear()
            if passage != 1:
                service.stop()
            else:
                kill_quietly(service)
                history.crashes += 1
        say(f"{step}: {'missed' if step in missed else 'died there, and went on'}")
    service.start()
    violations = finish(history, service, origin, rng, stats)
    say(f"{len(steps) - len(missed)} of {len(steps)} steps; {stats.text()}")
    return [f"the step {step} was never reached" for step in missed] + violations


def kill_quietly(service):
    service.process.kill()
    service.process.wait()
    service._gone()


def finish(history, service, origin, rng, stats):
    drain(history, service)
    evidence = checker.collect(history, service, origin,
                               lambda r: rng.random() < 0.1 or r["body_bytes"] > 100000)
    evidence.database = settled_database(service)
    harness.EXCHANGES.clear()
    stats.batches += len(history.submissions)
    stats.requests += sum(len(s.requests or ()) for s in history.submissions)
    stats.results_read += sum(map(len, history.reads.values()))
    stats.answers += history.answers
    return checker.check(history, evidence)


def generation(service, origin, seed, kills, stats, say):
    """One data directory, killed `kills` times under load. -> violations"""
    rng = random.Random(seed)
    history = History()
    load = loads.Load(history, service, origin, rng.random())
    origin.reset()
    for _ in range(kills):
        load.start()
        time.sleep(rng.uniform(0.005, 0.8) * harness.SLOWER)
        kill(service, load)
        history.crashes += 1
        stats.kills += 1
        while rng.random() < 0.15:
            start_and_kill(service, rng)
            history.crashes += 1
            stats.kills += 1
            stats.in_recovery += 1
        began = time.monotonic()
        service.start()
        harness.eventually(lambda: service.client().request("GET", "/readyz").status == 200)
        stats.ready_s.append(time.monotonic() - began)
        check_states(history, service)
        loads.replay_unknown(history, service.client())
        harness.EXCHANGES.clear()
    violations = finish(history, service, origin, rng, stats)
    say(f"seed {seed}: {stats.text()}")
    return violations
