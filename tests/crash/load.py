"""Mixed load on a service that is killed at any moment: submits, reads, steers, and writes down what
was confirmed (history.py)."""
import http.client
import json
import random
import threading
import urllib.parse

from history import OK, REFUSED, UNKNOWN, Request, Steer, Submission

from harness import query
from origin import HOSTS, content

BROKEN = (OSError, http.client.HTTPException, AssertionError)


class Load:
    def __init__(self, history, service, origin, seed):
        self.history, self.service, self.origin = history, service, origin
        self.random = random.Random(seed)
        self.names = 0
        self.threads = []
        self.stop = None
        self.may_break = False  # the service kills itself at some step

    # ---- what is submitted ----

    def make_request(self, name, i, rng):
        host = HOSTS[rng.randrange(6)]
        token = f"{name}.{i}"
        kind = rng.random()
        body = None
        if kind < 0.5:
            n = 300_000 if kind < 0.01 else rng.randrange(2000)
            url, body = self.origin.url(f"/bytes/{n}?t={token}", host), content(n, token)
        elif kind < 0.6:
            to = urllib.parse.quote(self.origin.url(f"/bytes/9?t={token}.to", HOSTS[i % 7]), safe="")
            url = self.origin.url(f"/redirect-to?url={to}&t={token}", host)
            body = content(9, f"{token}.to")
        elif kind < 0.75:
            url = self.origin.url(f"/flaky/1/{token}", host)
        elif kind < 0.9:
            url = self.origin.url(f"/delay/0.0{rng.randrange(10)}?t={token}", host)
        else:
            url = self.origin.url(f"/status/404?t={token}", host)
        return Request(url, f"c{i}", token, body)

    def make_submission(self, rng):
        with self.history.lock:
            self.names += 1
            name = f"n{self.names}"
        requests = [self.make_request(name, i, rng)
                    for i in range(rng.choice([1, 3, 30, 30, 100, 600]))]
        s = Submission(name, requests, key=f"key-{name}" if rng.random() < 0.6 else None,
                       crashes=self.history.crashes)
        settings = {"retry": {"max_attempts": 3, "min_backoff_ms": 20, "max_backoff_ms": 200},
                    "name": name}
        lines = [{"url": r.url, "custom_id": r.custom_id} for r in requests]
        headers = {"Idempotency-Key": s.key} if s.key else {}
        path = "/v1/batches"
        if rng.random() < 0.4:
            body = json.dumps(dict(settings, requests=lines)).encode()
            headers["Content-Type"] = "application/json"
        else:
            path += query(**{"name": name, **{f"retry.{k}": v
                                              for k, v in settings["retry"].items()}})
            if rng.random() < 0.5:
                body = "".join(json.dumps(line) + "\n" for line in lines).encode()
                headers["Content-Type"] = "application/x-ndjson"
            else:
                for r in requests:
                    r.custom_id = None
                body = "".join(r.url + "\n" for r in requests).encode()
                headers["Content-Type"] = "text/plain"
        s.replay = lambda client: self.post(client, s, path, body, headers)
        return self.history.add(s)

    def post(self, client, s, path, body, headers):
        """Sets the outcome of s."""
        answer = client.request("POST", path, body, headers)
        if answer.status == 202:
            batch = answer.json()
            self.history.saw_batch(batch)
            if s.id not in (None, batch["id"]):
                self.history.wrong(f"I2: {s.key} made {s.id} and {batch['id']}")
            s.id, s.outcome = batch["id"], OK
        elif answer.status in (409, 429, 503, 507):
            s.outcome = REFUSED
            # 409: the same key is under way: the connection died, and its upload is not known to
            # be gone yet; or nothing to retry
        else:
            self.history.wrong(f"{s.name} was answered with {answer.status} {answer.body[:200]}")
        return s.outcome

    # ---- threads ----

    def submit(self, client, rng):
        s = self.make_submission(rng)
        s.replay(client)

    def some_batch(self, rng):
        known = self.history.known()
        return rng.choice(known[-30:]) if known else None

    def steer(self, client, rng):
        batch_id = self.some_batch(rng)
        if batch_id is None:
            return
        verb = rng.choice(["pause", "pause", "resume", "resume", "resume", "cancel", "delete",
                           "retry", "retry"])
        if verb == "retry":
            old = next(s for s in self.history.submissions if s.id == batch_id)
            s = self.history.add(Submission(old.name, None, retry_of=batch_id,
                                            crashes=self.history.crashes))
            self.post(client, s, f"/v1/batches/{batch_id}/retry", None, {})
            return
        s = self.history.add(Steer(batch_id, verb))
        if verb == "delete":
            answer = client.request("DELETE", f"/v1/batches/{batch_id}")
        else:
            answer = client.request("POST", f"/v1/batches/{batch_id}/{verb}")
        if answer.status in (200, 202, 204):
            s.outcome = OK
            if answer.body:
                self.history.saw_batch(answer.json())
        elif answer.status in (409, 503, 507):
            s.outcome = REFUSED
        else:
            self.history.wrong(f"{verb} of {batch_id}: {answer.status} {answer.body[:200]}")

    def read(self, client, rng):
        """A page of results from where an earlier page ended, perhaps before a crash; a batch."""
        batch_id = self.some_batch(rng)
        if batch_id is None:
            return
        answer = client.request("GET", f"/v1/batches/{batch_id}?wait={rng.randrange(2)}")
        if answer.status in (404, 503):
            return  # a delete is under way; or the service is stopping
        self.history.saw_batch(answer.json())
        cursor = self.history.cursors.get(batch_id)
        answer = client.request("GET", f"/v1/batches/{batch_id}/results" + query(
            limit=rng.choice([1, 7, 100]), **({"after": cursor} if cursor else {})))
        if answer.status in (404, 503):
            return
        page = answer.expect(200).json()
        self.history.reads.setdefault(batch_id, []).extend(page["data"])
        if page["next"]:
            self.history.cursors[batch_id] = page["next"]

    def loop(self, work, seed, pause):
        rng = random.Random(seed)
        client = self.service.client(timeout=20)
        try:
            while not self.stop.is_set():
                work(client, rng)
                self.stop.wait(rng.random() * pause)
        except BROKEN as e:
            if not self.stop.is_set() and not self.may_break:
                self.history.wrong(f"an answer broke off though nobody killed the service: {e!r}")
        finally:
            client.close()

    def start(self):
        self.stop = threading.Event()
        # one thread reads, and one steers, so that the order of what they see is known
        for work, pause in ((self.submit, 0.02), (self.submit, 0.02), (self.read, 0.005),
                            (self.steer, 0.03)):
            thread = threading.Thread(target=self.loop,
                                      args=(work, self.random.random(), pause))
            thread.start()
            self.threads.append(thread)

    def end(self):
        """The service must be dead, or about to answer everything."""
        for thread in self.threads:
            thread.join()
        self.threads = []


def replay_unknown(history, client):
    """What got no answer, sent again with its key, makes exactly one batch."""
    for s in history.submissions:
        if s.outcome == UNKNOWN and s.key:
            s.replay(client)
