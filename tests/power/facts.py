"""What clients were told, read from a recording (record.h): the answers that left the process, and
up to when each of them binds it. See check.h for the file that comes out."""
import datetime
import json
import os
import re
import struct

EVENT = struct.Struct("<IIQQ")
CREATE, WRITE, SYNC_BEGIN, SYNC_END, RECV, SEND = 1, 2, 7, 8, 10, 11
FOREVER = 2**62
BATCH = re.compile(r"/v1/batches/(b_[0-9a-z]+)")


def events(path):
    data = path.read_bytes()
    at = 0
    while at + EVENT.size <= len(data):
        kind, length, ino, where = EVENT.unpack_from(data, at)
        at += EVENT.size
        yield kind, ino, where, data[at:at + length]
        at += length


def drop_part(path):
    """Takes off an event of which only a part was written, as the process was killed meanwhile."""
    data = path.read_bytes()
    whole = at = 0
    while at <= len(data):
        whole = at
        if at + EVENT.size > len(data):
            break
        at += EVENT.size + EVENT.unpack_from(data, at)[1]
    os.truncate(path, whole)


def places_before_checkpoints(path, least):
    """After how many events the log holds at least so many bytes that nothing of was folded into the
    database yet: there a log that is cut leaves an earlier state of it."""
    names, size, untouched, found = {}, 0, False, []
    for n, (kind, ino, where, text) in enumerate(events(path), 1):
        if kind == CREATE:
            names[ino] = text.decode(errors="replace").rpartition("/")[2]
        elif kind == WRITE and names.get(ino) == "batchfetch.db-wal":
            if where == 0:  # its header: it begins anew
                size, untouched = 0, True
            size = max(size, where + len(text))
        elif kind == WRITE and names.get(ino) == "batchfetch.db":
            untouched = False
        if untouched and size >= least:
            found.append(n)
    return found


def milliseconds(text):
    moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return round(moment.timestamp() * 1000)


class Facts:
    def __init__(self):
        self.v = []      # [from, until, kind, id, a, b]
        self.read = {}   # (id, index) -> fact
        self.asked = {}  # connection -> (method, path)
        self.answer = {} # connection -> bytes

    def add(self, at, kind, batch_id, a=0, b=0):
        fact = [at, FOREVER, kind, batch_id, a, b]
        self.v.append(fact)
        return fact

    def end(self, at, batch_id, kinds):
        for fact in self.v:
            if fact[3] == batch_id and fact[2] in kinds and fact[1] == FOREVER:
                fact[1] = at

    def received(self, at, connection, data):
        match = re.match(rb"([A-Z]+) (/[^ ]*) HTTP/1\.1\r\n", data)
        if not match:
            return  # the rest of a body
        method, path = match[1].decode(), match[2].decode()
        self.asked[connection] = method, path
        self.answer[connection] = b""
        batch = BATCH.match(path)
        if method == "DELETE" and batch:
            self.end(at, batch[1], ("accepted", "cancelled", "paused", "ended", "read"))
        elif method == "POST" and batch:  # cancel, pause, resume
            self.end(at, batch[1], ("paused",))

    def sent(self, at, connection, data):
        if connection not in self.asked:
            return
        begun = self.answer[connection] != b""
        self.answer[connection] += data
        head, blank, body = self.answer[connection].partition(b"\r\n\r\n")
        if not blank or not head.startswith(b"HTTP/1.1 "):
            return
        method, path = self.asked[connection]
        status = int(head[9:12])
        batch = BATCH.match(path)
        if not begun and method == "DELETE" and status == 204:
            self.add(at, "deleted", batch[1])
        if not begun and method == "POST" and status in (200, 202) and batch:
            kind = {"cancel": "cancelled", "pause": "paused"}.get(path.rpartition("/")[2])
            if kind:
                self.add(at, kind, batch[1])
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
        if length is None or len(body) != int(length[1]) or status not in (200, 202):
            return
        self.whole(at, method, path, batch, json.loads(body))

    def write(self, recording):
        text = "".join(" ".join(map(str, fact)) + "\n" for fact in self.v)
        recording.with_suffix(".facts").write_text(text)
        kinds = [fact[2] for fact in self.v]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def whole(self, at, method, path, batch, doc):
        if method == "POST" and batch is None:
            self.add(at, "accepted", doc["id"], doc["request_counts"]["total"])
        elif method == "GET" and "/results" in path:
            for r in doc["data"]:
                key = batch[1], r["index"]
                fact = self.read.get(key)
                completed = milliseconds(r["completed_at"])
                if fact is None or fact[5] != completed:
                    self.read[key] = self.add(at, "read", *key, completed)
        elif method == "GET" and batch and doc["status"] in ("completed", "cancelled"):
            counts = doc["request_counts"]
            self.add(at, "ended", batch[1], counts["succeeded"], counts["failed"])


def extract(recording):
    facts = Facts()
    for at, (kind, ino, _, data) in enumerate(events(recording)):
        if kind == RECV:
            facts.received(at, ino, data)
        elif kind == SEND:
            facts.sent(at, ino, data)
    return facts


def write(recording):
    """Into a file beside the recording. -> {kind: number of facts}"""
    return extract(recording).write(recording)
