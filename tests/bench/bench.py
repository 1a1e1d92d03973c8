#!/usr/bin/python3
"""The driver of tests/bench/run, which says how it is used."""
import argparse
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import report
import sections
from clients import Failed, build_peers
from origin import Origin

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Bench:
    def __init__(self, options, work, origin):
        self.binary = options.binary
        self.quick = options.quick
        self.turns = options.rounds
        self.nofile = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.work = work
        self.origin = origin
        self.records = []
        self.began = time.monotonic()

    def rounds(self):
        return range(self.turns)

    def measurer(self, section, case, turn, urls):
        """-> a function that takes one measurement of a client and records it; `once`: of the
        first round only, since it is slow and no goal hangs on it."""
        def measure(client, function, once=False):
            if once and turn > 0:
                return
            record = {"section": section, "case": str(case), "client": client, "round": turn,
                      "urls": urls, "at_s": round(time.monotonic() - self.began, 1)}
            try:
                record.update(function())
            except (Failed, OSError, ValueError, subprocess.SubprocessError) as error:
                record["error"] = f"{type(error).__name__}: {error}"
            self.records.append(record)
            print(report.progress(record), flush=True)
        return measure


def version(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return (done.stdout + done.stderr).strip().split("\n")[0]
    except OSError:
        return "missing"


def describe(binary):
    """What was measured, and where."""
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"), "commit": commit,
        "cpu": cpu[1] if cpu else platform.machine(), "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20), "kernel": platform.release(),
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "load_at_start": os.getloadavg()[0],
        "versions": {
            "batchfetch": version(binary, "--version"),
            "nginx": version("nginx", "-v").replace("nginx version: ", ""),
            "go": version("go", "version").removeprefix("go version "),
            "aiohttp": "aiohttp " + version("/usr/bin/python3", "-c",
                                            "import aiohttp, sys; print(aiohttp.__version__, "
                                            "'on Python', sys.version.split()[0])"),
            "curl": " ".join(version("curl", "--version").split()[:2]),
            "h2load": version("h2load", "--version"),
        },
    }


def parse(argv):
    parser = argparse.ArgumentParser(prog="tests/bench/run")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(sections.ALL))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--binary", type=lambda path: pathlib.Path(path).resolve(),
                        default=ROOT / "build/release/batchfetch")
    parser.add_argument("--out", type=lambda path: pathlib.Path(path).resolve(),
                        default=ROOT / "build/bench")
    parser.add_argument("--write-docs", action="store_true")
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args(argv)
    unknown = set(options.only) - set(sections.ALL)
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {' '.join(sections.ALL)}")
    if not options.report_only and not os.access(options.binary, os.X_OK):
        parser.error(f"{options.binary} is no program")
    options.rounds = (1 if options.quick else 3) if options.rounds is None else options.rounds
    if options.rounds < 1:
        parser.error("--rounds takes 1 or more")
    return options


def run(options):
    """-> the report, as it is written to bench.json"""
    nofile = hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        nofile = 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, hard))
    if nofile < 20000:
        print(f"Note: this machine allows {nofile} descriptors; the largest sizes need 20,000.")
    machine = describe(options.binary)
    load = machine["load_at_start"]
    if load > 0.5:
        print(f"Note: the load is {load:.1f} before anything was started; others' work makes the "
              "figures worse.")
    began = time.monotonic()
    work = pathlib.Path(tempfile.mkdtemp(prefix="work-", dir=options.out))
    try:
        build_peers(work, options.out / "go-cache")
        with Origin(work / "origin", min(nofile, 65000)) as origin:
            bench = Bench(options, work, origin)
            for name in options.only:
                print(f"\n{name}: {sections.ALL[name].__doc__}", flush=True)
                sections.ALL[name](bench)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"machine": machine, "quick": options.quick, "rounds": bench.turns,
            "seconds": round(time.monotonic() - began), "records": bench.records}


def main(argv):
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all that runs is ended
    path = options.out / "bench.json"
    if options.report_only:
        document = json.loads(path.read_text())
    else:
        document = run(options)
        document["summary"] = report.summary(document)
        document["goals"] = report.goals(document)
        path.write_text(json.dumps(document, indent=1) + "\n")
    text = report.text(document)
    print("\n" + text)
    (options.out / "bench.md").write_text(report.markdown(document))
    plot = report.plot(document)
    if plot is not None:
        (options.out / "curve.svg").write_text(plot)
    print(f"In {options.out}: bench.md, bench.json" + (", curve.svg" if plot else ""))
    if options.write_docs:
        report.write_docs(document, plot, ROOT / "docs")
    broken = any("error" in r for r in document["records"])
    return 1 if broken or not all(g["ok"] for g in document["goals"]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
