"""Promise 1: a 202 is durable. The service is killed under load and loses nothing (the long version
is tests/crash/run); and the checker that says so goes red when something is wrong."""
import copy
import pathlib
import random
import shutil
import sqlite3
import sys

import pytest

import harness
from harness import size

sys.path.append(str(pathlib.Path(__file__).parent.parent / "crash"))

import checker  # noqa: E402
import crash  # noqa: E402
from history import OK, REFUSED, UNKNOWN, History, Request, Steer, Submission  # noqa: E402
from origin import content  # noqa: E402


@pytest.fixture
def killed(origin):
    service = harness.Service(harness.temp_dir("crash"), "--max-per-host", 20).start()
    yield service
    if service.process:
        service.stop()
    shutil.rmtree(service.dir)


def test_promise_1_nothing_is_lost_when_the_service_is_killed_under_load(killed, origin):
    seed = random.randrange(10**9)
    stats = crash.Stats()
    violations = crash.generation(killed, origin, seed, size(8, 4), stats, print)
    assert not violations, (seed, violations[:10])
    assert stats.kills >= 4 and stats.batches > 10 and stats.answers > 20


@pytest.fixture(scope="module")
def story(module_services, session_origin):
    """A small history, and what there is to see of it: without a fault."""
    session_origin.reset()
    service = module_services()
    history = History()
    for n in range(3):
        requests = [Request(session_origin.url(f"/bytes/50?t=s{n}.{i}"), None, f"s{n}.{i}",
                            content(50, f"s{n}.{i}")) for i in range(10)]
        if n == 1:
            requests[3] = Request(session_origin.url("/status/404?t=s1.3"), None, "s1.3", None)
        s = history.add(Submission(f"s{n}", requests, key=f"k{n}"))
        batch = service.submit([r.url for r in requests], name=s.name)
        s.outcome, s.id = OK, batch["id"]
        service.wait(s.id)
    first, second, third = history.submissions
    retried = service.post(f"/v1/batches/{second.id}/retry").expect(202).json()
    history.add(Submission("s1", None, retry_of=second.id, outcome=OK, id=retried["id"]))
    service.wait(retried["id"])
    history.add(Submission("refused", first.requests[:2], outcome=REFUSED))
    history.add(Submission("unknown", first.requests[:2], outcome=UNKNOWN))
    history.reads[first.id] = service.results(first.id)[:7]
    evidence = checker.collect(history, service, session_origin, lambda r: True)
    service.stop()
    evidence.database = checker.read_database(service.data)
    service.start()
    assert checker.check(history, evidence) == []
    return history, evidence, service


def lost_batch(h, e):
    gone = h.submissions[2].id
    for part in (e.batches, e.results, e.by_index):
        del part[gone]


def half_a_batch(h, e):
    h.submissions[2].outcome = UNKNOWN
    h.submissions[2].requests.append(h.submissions[2].requests[0])


def twice_by_its_key(h, e):
    e.batches[h.submissions[0].id]["name"] = "s2"


def refused_and_there(h, e):
    h.submissions[2].outcome = REFUSED


def never_submitted(h, e):
    e.batches[h.submissions[0].id]["name"] = "who"


def another_url(h, e):
    e.results[h.submissions[0].id][4]["url"] += "x"


def result_dropped(h, e):
    e.results[h.submissions[2].id].pop()


def result_twice(h, e):
    e.results[h.submissions[2].id].append(e.results[h.submissions[2].id][0])


def never_ends(h, e):
    e.batches[h.submissions[2].id]["status"] = "in_progress"


def order_differs(h, e):
    e.by_index[h.submissions[2].id].pop()


def count_off_by_one(h, e):
    e.batches[h.submissions[2].id]["request_counts"]["succeeded"] -= 1


def body_with_a_flipped_byte(h, e):
    r = h.submissions[0].requests[5]
    r.body = bytes([r.body[0] ^ 1]) + r.body[1:]


def fetched_once_too_often(h, e):
    e.hits["s2.4"] += 1


def result_changed(h, e):
    h.reads[h.submissions[0].id][3]["completed_at"] = "2000-01-01T00:00:00.000Z"


def result_skipped(h, e):
    del h.reads[h.submissions[0].id][2]


def result_repeated(h, e):
    h.reads[h.submissions[0].id].insert(3, h.reads[h.submissions[0].id][2])


def too_many_read(h, e):
    h.reads[h.submissions[0].id] *= 2


def damaged(h, e):
    e.database["integrity"] = ["row 3 missing from index"]


def row_dropped(h, e):
    e.database["result"][1] -= 1


def rows_left(h, e):
    e.database["page"][77] = 1


def left_deleted(h, e):
    batch_id, _, total = e.database["batches"][1]
    e.database["batches"][1] = batch_id, 5, total


def body_left(h, e):
    e.database["bodies_without_result"] = 1


def attempt_left(h, e):
    e.database["attempt"][1] = 1


def deleted_and_there(h, e):
    h.add(Steer(h.submissions[0].id, "delete", OK))


def cancelled_and_not(h, e):
    h.add(Steer(h.submissions[0].id, "cancel", OK))
    e.batches[h.submissions[0].id]["request_counts"]["cancelled"] = 1


@pytest.mark.parametrize("fault, code", [
    (lost_batch, "I1"), (another_url, "I1"), (half_a_batch, "I1"), (twice_by_its_key, "I2"),
    (refused_and_there, "I2"), (never_submitted, "I2"), (result_dropped, "I3"),
    (result_twice, "I3"), (never_ends, "I3"), (order_differs, "I3"), (row_dropped, "I3"),
    (count_off_by_one, "I4"), (body_with_a_flipped_byte, "I5"), (fetched_once_too_often, "I6"),
    (result_changed, "I7"), (result_skipped, "I7"), (result_repeated, "I7"), (too_many_read, "I7"),
    (damaged, "I8"), (rows_left, "I9"), (left_deleted, "I9"), (body_left, "I9"),
    (attempt_left, "I9"), (deleted_and_there, "I10"), (cancelled_and_not, "I10"),
], ids=lambda v: v.__name__ if callable(v) else v)
def test_promise_1_the_checker_goes_red(story, fault, code):
    history, evidence, _ = story
    lock, history.lock = history.lock, None
    try:
        h, e = copy.deepcopy(history), copy.deepcopy(evidence)
    finally:
        history.lock = lock
    h.lock = lock
    fault(h, e)
    found = [v.split(":")[0] for v in checker.check(h, e)]
    assert code in found, found


def test_promise_1_counts_that_do_not_sum_are_seen():
    history = History()
    batch = {"id": "b", "status": "in_progress", "request_counts": {
        "total": 3, "queued": 1, "in_flight": 1, "retry_wait": 0, "succeeded": 0, "failed": 0,
        "cancelled": 0}}
    history.saw_batch(batch)
    batch["request_counts"].update(queued=2)
    history.saw_batch(batch)
    assert len(history.violations) == 1


def test_promise_1_the_checker_sees_rows_that_are_missing_in_the_file(story, tmp_path):
    history, evidence, service = story
    service.stop()
    try:
        [path] = service.data.glob("*.db")
        shutil.copy(path, tmp_path)
    finally:
        service.start()
    db = sqlite3.connect(tmp_path / path.name)
    db.execute("DELETE FROM body WHERE id = (SELECT max(id) FROM body)")
    db.execute("DELETE FROM result WHERE id = (SELECT min(id) FROM result)")
    db.commit()
    db.close()
    e = copy.deepcopy(evidence)
    e.database = checker.read_database(tmp_path)
    codes = {v.split(":")[0] for v in checker.check(history, e)}
    assert codes == {"I3", "I9"}, codes
