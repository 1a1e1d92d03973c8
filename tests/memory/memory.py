"""The real sizes of tests/system/test_memory.py; see run."""
import argparse
import os
import pathlib
import shutil
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "system")]

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true")
parser.add_argument("--limit", default="128m,256m,512m,auto")
parser.add_argument("--only", default="")
parser.add_argument("--cgroup", action="store_true")
parser.add_argument("--out", default=str(HERE.parents[1] / "build/memory.md"))
parser.add_argument("--binary")
args = parser.parse_args()
if args.binary:
    os.environ["BATCHFETCH_BIN"] = str(pathlib.Path(args.binary).resolve())

import harness  # noqa: E402
import loads  # noqa: E402

PART = 10 if args.quick else 1
READERS = ["--max-connections", 10_000]


def everything(service):
    """A part of each, at the same time."""
    return loads.at_once(
        lambda: loads.queued(service, 1_000_000 // PART),
        lambda: loads.bodies(service, 500 // PART, 1_000_000),
        lambda: loads.readers(service, 1000 // PART, 10),
        lambda: loads.uploaders(service, 300 // PART, 10, 100_000),
        lambda: loads.many_hosts(service, 100 // PART, 2000))


LOADS = {  # name -> (options, call)
    "queued": ([], lambda s: loads.queued(s, 10_000_000 // PART)),
    "bodies": ([], lambda s: loads.bodies(s, 3000 // PART, 1_000_000)),
    "readers": (READERS, lambda s: loads.readers(s, 10_000 // PART, 20)),
    "uploaders": ([], lambda s: loads.uploaders(s, 1000 // PART, 15)),
    "bursts": ([], lambda s: loads.uploaders(s, 500 // PART, 15, 200_000)),
    "hosts": ([], lambda s: loads.many_hosts(s, 400 // PART, 2000)),
    "tiny": ([], lambda s: loads.many_hosts(s, 2000 // PART, 1)),
    "line": ([], lambda s: loads.one_line(s, (1 << 30) // PART)),
    "all": (READERS, everything),
}


class Cgroup:
    """A memory cgroup of version 1 or 2; `prefix` runs a command in it."""

    def __init__(self, limit):
        v1, v2 = pathlib.Path("/sys/fs/cgroup/memory"), pathlib.Path("/sys/fs/cgroup")
        self.v2 = not v1.is_dir()
        self.dir = (v2 if self.v2 else v1) / f"batchfetch-test-{os.getpid()}"
        self.dir.mkdir()
        (self.dir / ("memory.max" if self.v2 else "memory.limit_in_bytes")).write_text(str(limit))
        self.prefix = ["sh", "-c", f'echo $$ >"{self.dir}/cgroup.procs" && exec "$@"', "sh"]

    def kills(self):
        file = self.dir / ("memory.events" if self.v2 else "memory.oom_control")
        return dict(line.split() for line in file.read_text().splitlines()).get("oom_kill", "0")

    def most(self):
        file = self.dir / ("memory.peak" if self.v2 else "memory.max_usage_in_bytes")
        return int(file.read_text()) / (1 << 20) if file.exists() else 0

    def close(self):
        self.dir.rmdir()


def one(name, limit, prefix=()):
    """-> (cells of the table's row, whether all is well)"""
    options, call = LOADS[name]
    service = harness.Service(harness.temp_dir("memory"), "--memory-limit", limit,
                              "--log-level", "info", *options, prefix=prefix)
    start = time.monotonic()
    what, fine = "", True
    try:
        service.start()
        what = call(service)
        said = loads.plan(service)
        most = service.status_kb("VmHWM") / 1024
        fine = most <= said["bound"] <= said["limit"]
        row = [name, limit, f"{said['bound']:.0f}", f"{most:.0f}", "yes" if fine else "**no**"]
    except AssertionError as e:
        fine = False
        row = [name, limit, "", "", f"**failed**: {str(e)[:300]}"]
    finally:
        if service.process is not None:
            service.stop()
        shutil.rmtree(service.dir)
        harness.EXCHANGES.clear()
    return [*row, what, f"{time.monotonic() - start:.0f}"], fine


def main():
    loads.more_descriptors()
    names = [n for n in LOADS if not args.only or n in args.only.split(",")]
    rows = [["load", "--memory-limit", "bound, MiB", "most, MiB", "kept", "what", "s"]]
    all_fine = True

    def add(row, fine):
        nonlocal all_fine
        all_fine = all_fine and fine
        rows.append(row)
        print(" | ".join(row), flush=True)

    print(" | ".join(rows[0]))
    for limit in args.limit.split(","):
        for name in names:
            add(*one(name, limit))
    for name in names if args.cgroup else []:
        try:
            group = Cgroup(256 << 20)
        except OSError as e:
            print(f"no memory cgroup can be made here: {e}")
            break
        row, fine = one(name, "auto", group.prefix)
        row[1] = "auto, in a cgroup of 256m"
        row[5] += f"; the cgroup had {group.most():.0f} MiB, page cache included"
        add(row, fine and group.kills() == "0")
        group.close()
    text = "".join("| " + " | ".join(r) + " |\n" + ("| --- " * len(r) + "|\n") * (i == 0)
                   for i, r in enumerate(rows))
    pathlib.Path(args.out).write_text(text)
    return 0 if all_fine else 1


sys.exit(main())
