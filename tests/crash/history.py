"""What a fault test has seen: the client's log.

Every entry has an outcome: OK (confirmed by the service), REFUSED (it said no), UNKNOWN (no answer:
it may have happened or not, but not in part). checker.py holds the service against it.
"""
import dataclasses
import threading

OK, REFUSED, UNKNOWN = "ok", "refused", "unknown"


@dataclasses.dataclass
class Request:
    url: str
    custom_id: str
    token: str            # unique; the origin's log has it: hits of `token`
    body: bytes | None    # what a succeeded result must have; None: not checked


@dataclasses.dataclass
class Submission:
    name: str             # unique
    requests: list | None  # None: a retry, of what failed in `retry_of`
    key: str | None = None
    retry_of: str | None = None
    outcome: str = UNKNOWN
    id: str | None = None
    crashes: int = 0      # that had happened when it was sent
    replay: object = None  # sends it again, -> (outcome, id)


@dataclasses.dataclass
class Steer:
    id: str
    verb: str             # cancel, delete, pause, resume
    outcome: str = UNKNOWN


class History:
    """Written by the threads of the load; read when they have ended."""

    def __init__(self):
        self.lock = threading.Lock()
        self.submissions = []
        self.steers = []
        self.reads = {}        # id: results in the order of their pages, as read so far
        self.cursors = {}      # id: where to read on
        self.crashes = 0
        self.violations = []   # found on the way: sums, states after a restart, unexpected answers
        self.answers = 0

    def wrong(self, text):
        with self.lock:
            self.violations.append(text)

    def add(self, entry):
        with self.lock:
            (self.submissions if isinstance(entry, Submission) else self.steers).append(entry)
        return entry

    def known(self):
        """Ids of batches that are there, and that no delete was tried on."""
        with self.lock:
            gone = {s.id for s in self.steers if s.verb == "delete"}
            return [s.id for s in self.submissions if s.id and s.id not in gone]

    def steers_of(self, batch_id):
        return [s for s in self.steers if s.id == batch_id]

    def saw_batch(self, batch):
        """Counts always sum to the total, in every answer."""
        counts = dict(batch["request_counts"])
        total = counts.pop("total")
        with self.lock:
            self.answers += 1
        if sum(counts.values()) != total or min(counts.values()) < 0:
            self.wrong(f"I4: the counts of {batch['id']} do not sum: {batch['request_counts']}")
        done = counts["succeeded"] + counts["failed"] + counts["cancelled"]
        if batch["status"] in ("completed", "cancelled") and done != total:
            self.wrong(f"I4: {batch['id']} ended without all its results: {batch}")
