"""The one checker of all fault tests: does what the service shows agree with what it promised?

    evidence = collect(history, service, origin)   # after all batches have ended; the service runs
    service.stop(); evidence.database = read_database(service.data)
    violations = check(history, evidence)          # pure; [] is good

The invariants (each violation begins with its number):
  I1 every confirmed batch is there, with every URL in order
  I2 one without an answer is whole or absent; sent again with its key, it makes exactly one;
     what was refused is absent
  I3 every accepted request has exactly one result
  I4 counts sum to the total
  I5 a succeeded result has the origin's body
  I6 the origin saw a URL no more often than attempts and crashes explain
  I7 what was read is unchanged, and a cursor of before a crash neither skips nor repeats
  I8 the database is sound
  I9 nothing is left over in it
  I10 a confirmed cancel, delete or pause holds
"""
import collections
import dataclasses
import hashlib
import json
import pathlib
import re
import sqlite3
import time

from history import OK, REFUSED, UNKNOWN

ENDED = ("completed", "cancelled")
TOKEN = re.compile(r"[?&]t=([\w.-]+)|/flaky/\d+/([\w.-]+)")


@dataclasses.dataclass
class Evidence:
    batches: dict                  # id: batch, of every batch in the list
    results: dict                  # id: results in order of completion
    by_index: dict                 # id: indexes in order=index
    bodies: dict                   # (id, index): SHA-256 of the body of a succeeded result
    hits: collections.Counter      # token: requests at the origin
    database: dict | None = None   # read_database()


def pages(request, path, limit=1000):
    after = ""
    while True:
        page = request("GET", f"{path}{'&' if '?' in path else '?'}limit={limit}"
                       + (f"&after={after}" if after else ""))
        yield from page["data"]
        if not page["has_more"]:
            return
        after = page["next"]


def collect(history, service, origin, want_body):
    """Asks the API for everything. want_body(result): whether to fetch its body."""
    def request(method, path):
        answer = service.client().request(method, path, keep=1 << 30)
        assert answer.status == 200, (path, answer)
        return answer.json()

    batches = {b["id"]: b for b in pages(request, "/v1/batches")}
    evidence = Evidence(batches, {}, {}, {}, collections.Counter())
    client = service.client()
    for batch_id, batch in batches.items():
        history.saw_batch(batch)
        path = f"/v1/batches/{batch_id}/results"
        evidence.results[batch_id] = list(pages(request, path))
        evidence.by_index[batch_id] = [r["index"] for r in pages(request, path + "?order=index")]
        for r in evidence.results[batch_id]:
            if r["status"] == "succeeded" and want_body(r):
                body = client.request("GET", r["body_url"], keep=1 << 30)
                evidence.bodies[batch_id, r["index"]] = (
                    hashlib.sha256(body.body).hexdigest() if body.status == 200 else
                    f"status {body.status}")
    for hit in settled_hits(origin):
        match = TOKEN.search(hit.uri)
        if match:
            evidence.hits[match[1] or match[2]] += 1
    return evidence


def settled_hits(origin):
    """nginx writes a line after its answer: until no more come."""
    before = -1
    while True:
        hits = origin.hits()
        if len(hits) == before:
            return hits
        before = len(hits)
        time.sleep(0.2)


def read_database(data):
    """What the file holds, read after the service has stopped."""
    [path] = [p for p in pathlib.Path(data).iterdir() if p.suffix == ".db"]
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        count = "SELECT id>>32, count(*) FROM {} GROUP BY 1"
        return {
            "integrity": [row[0] for row in db.execute("PRAGMA integrity_check")],
            "batches": {no: (batch_id, state, total) for no, batch_id, state, total in
                        db.execute("SELECT no, id, state, total FROM batch")},
            **{table: dict(db.execute(count.format(table)))
               for table in ("page", "result", "body", "attempt")},
            "bodies_without_result": db.execute(
                "SELECT count(*) FROM body WHERE id NOT IN (SELECT id FROM result)").fetchone()[0],
            "results_without_body": db.execute(
                "SELECT count(*) FROM result WHERE body_len>0 AND id NOT IN (SELECT id FROM body)"
            ).fetchone()[0],
        }
    finally:
        db.close()


# ---- the invariants ----

def check_submissions(history, evidence):
    by_name = collections.defaultdict(list)
    for batch in evidence.batches.values():
        by_name[batch["name"], batch["retry_of"]].append(batch["id"])
    deletes = {s.id for s in history.steers if s.verb == "delete"}
    wanted = set()
    for s in history.submissions:
        there = by_name[s.name, s.retry_of]
        wanted.add((s.name, s.retry_of))
        if s.outcome == OK and s.id not in evidence.batches and s.id not in deletes:
            yield f"I1: {s.name} was confirmed as {s.id} and is not there"
        if s.requests is not None and len(there) > 1:
            yield f"I2: {s.name} made {len(there)} batches: {there}"
        if s.outcome == OK and s.requests is not None and set(there) - {s.id}:
            yield f"I2: {s.name} is {there}, confirmed was {s.id}"
        if s.outcome == REFUSED and s.requests is not None and there:
            yield f"I2: {s.name} was refused and is there: {there}"
        for batch_id in there if s.outcome != REFUSED else ():
            yield from check_content(s, evidence, batch_id)
    for name in set(by_name) - wanted:
        yield f"I2: {name} was never submitted: {by_name[name]}"


def check_content(s, evidence, batch_id):
    results = sorted(evidence.results[batch_id], key=lambda r: r["index"])
    if s.requests is None:
        old = evidence.results.get(s.retry_of)
        if old is None:
            return
        old = sorted((r for r in old if r["status"] == "failed"), key=lambda r: r["index"])
        asked = [(r["url"], r["custom_id"]) for r in old]
    else:
        asked = [(r.url, r.custom_id) for r in s.requests]
    total = evidence.batches[batch_id]["request_counts"]["total"]
    if total != len(asked):
        yield f"I1: {batch_id} has {total} requests, {len(asked)} were submitted ({s.outcome})"
    elif [(r["url"], r["custom_id"]) for r in results] != asked:
        yield f"I1: the requests of {batch_id} are not those submitted, in order"
    for r, request in zip(results, s.requests or ()):
        got = evidence.bodies.get((batch_id, r["index"]))
        if got is None or request.body is None:
            continue
        if got != hashlib.sha256(request.body).hexdigest():
            yield f"I5: the body of {batch_id}/{r['index']} is not the origin's ({got})"


def check_results(evidence):
    for batch_id, batch in evidence.batches.items():
        counts = batch["request_counts"]
        indexes = [r["index"] for r in evidence.results[batch_id]]
        if batch["status"] not in ENDED:
            yield f"I3: {batch_id} has not ended: {batch['status']} {counts}"
        elif sorted(indexes) != list(range(counts["total"])):
            extra = [i for i, n in collections.Counter(indexes).items() if n > 1]
            missing = sorted(set(range(counts["total"])) - set(indexes))
            yield f"I3: results of {batch_id}: twice {extra[:5]}, missing {missing[:5]}"
        if evidence.by_index[batch_id] != sorted(indexes):
            yield f"I3: {batch_id}: order=index shows others than order=completion"
        for status in ("succeeded", "failed", "cancelled"):
            n = sum(r["status"] == status for r in evidence.results[batch_id])
            if batch["status"] in ENDED and n != counts[status]:
                yield f"I4: {batch_id} counts {counts[status]} {status}, there are {n}"


def check_hits(history, evidence):
    attempts, crashes = collections.Counter(), collections.Counter()
    gone = {s.id for s in history.steers if s.verb == "delete"}
    unseen = set()
    for s in history.submissions:
        if s.outcome != OK or s.id in gone or s.id not in evidence.results:
            unseen.update(r.token for r in s.requests or ())
            continue
        tokens = {r.url: r.token for r in s.requests or ()}
        if s.requests is None:
            tokens = {r["url"]: (TOKEN.search(r["url"]) or [0, "", ""]) for r in
                      evidence.results[s.id]}
            tokens = {url: t[1] or t[2] for url, t in tokens.items()}
        for r in evidence.results[s.id]:
            token = tokens.get(r["url"], "")
            attempts[token] += r["attempts"]
            crashes[token] += history.crashes - s.crashes
    retried = {s.retry_of for s in history.submissions if s.retry_of}
    for s in history.submissions:  # retries of which nobody knows the attempts
        if s.retry_of and (s.outcome != OK or s.id in gone):
            for r in evidence.results.get(s.retry_of, ()):
                match = TOKEN.search(r["url"])
                unseen.add((match[1] or match[2]) if match else "")
    for s in history.submissions:
        if s.id in retried and s.id not in evidence.results:
            unseen.update(r.token for r in s.requests or ())
    for token, n in evidence.hits.items():
        if token in attempts and token not in unseen and n > attempts[token] + crashes[token]:
            yield (f"I6: {token} was fetched {n} times: {attempts[token]} attempts, "
                   f"{crashes[token]} crashes")


def same(a, b):
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def check_reads(history, evidence):
    for batch_id, read in history.reads.items():
        final = evidence.results.get(batch_id)
        if final is None:
            continue
        if len(read) > len(final):
            yield f"I7: {len(read)} results of {batch_id} were read, {len(final)} are there"
        for i, (a, b) in enumerate(zip(read, final)):
            if not same(a, b):
                what = "changed" if a["index"] == b["index"] else "stands elsewhere"
                yield f"I7: result {i} of {batch_id}, which was read, {what}: {a} / {b}"
                break


def check_steers(history, evidence):
    for s in history.steers:
        batch = evidence.batches.get(s.id)
        if s.outcome != OK:
            continue
        if s.verb == "delete" and batch is not None:
            yield f"I10: {s.id} was deleted, and is there"
        if s.verb == "cancel" and batch is not None:
            if batch["status"] == "completed" and batch["request_counts"]["cancelled"] == 0:
                continue  # every request had its result already
            if batch["status"] != "cancelled":
                yield f"I10: {s.id} was cancelled, and is {batch['status']}"


def check_database(evidence):
    db = evidence.database
    if db is None:
        return
    if db["integrity"] != ["ok"]:
        yield f"I8: integrity_check: {db['integrity'][:3]}"
    for no, (batch_id, state, total) in db["batches"].items():
        if state not in (3, 4):
            yield f"I9: {batch_id} is left in state {state}"
        elif db["result"].get(no, 0) != total:
            yield f"I3: {batch_id} has {db['result'].get(no, 0)} rows of results of {total}"
        if batch_id not in evidence.batches and state in (3, 4):
            yield f"I9: {batch_id} is in the database and not in the list"
        if db["attempt"].get(no):
            yield f"I9: {batch_id} ended, with {db['attempt'][no]} attempts that wait"
    for batch_id in set(evidence.batches) - {b[0] for b in db["batches"].values()}:
        yield f"I8: {batch_id} is in the list and not in the database"
    for table in ("page", "result", "body", "attempt"):
        orphans = set(db[table]) - set(db["batches"])
        if orphans:
            yield f"I9: rows of {len(orphans)} batches that are gone are left in {table}"
    if db["bodies_without_result"] or db["results_without_body"]:
        yield (f"I9: {db['bodies_without_result']} bodies without a result, "
               f"{db['results_without_body']} results without their body")


def check(history, evidence):
    return [*history.violations,
            *check_submissions(history, evidence), *check_results(evidence),
            *check_hits(history, evidence), *check_reads(history, evidence),
            *check_steers(history, evidence), *check_database(evidence)]
