"""README.md shows what really comes: its curl lines are run, and their output is compared."""
import functools
import http.server
import json
import re
import subprocess
import threading

import pytest

import harness

README = (harness.ROOT / "README.md").read_text()

# What differs from run to run.
VARIES = [
    (r"b_[0-9a-z]{30,}", "b_ID"),
    (r'"\d{4}-\d\d-\d\dT[\d:.]+Z"', '"TIME"'),
    (r'"(\w+_ms)":[\d.]+', r'"\1":0'),
    (r'"(rate_per_s|eta_s)":([\d.]+|null)', r'"\1":0'),
    (r'"status":"(queued|in_progress|completed)"', '"status":"ANY"'),
    (r'"started_at":null', '"started_at":"TIME"'),
]


def examples():
    """The curl lines that are followed by their output -> [(line, output)]"""
    return re.findall(r"^    (curl [^\n]*)\n\n```json\n(.*?)```$", README, re.M | re.S)


def mask(text, exact_status):
    for pattern, to in VARIES:
        if "queued|" in pattern and exact_status:
            continue
        text = re.sub(pattern, to, text)
    return sorted(text.splitlines())  # results come in order of completion


@pytest.fixture
def web():
    """The web server of the README: python3 -m http.server in the root of the repository."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=harness.ROOT))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_curl_lines_give_what_the_readme_shows(start, web, tmp_path):
    service = start()
    def run(command):
        command = command.replace("localhost:8080", f"127.0.0.1:{service.address[1]}")
        command = command.replace("127.0.0.1:8001", web)
        return subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, timeout=60,
                              env={"id": batch_id or ""}, check=True).stdout.decode()

    batch_id = None
    run(re.search(r"^    (printf .*> urls.txt)$", README, re.M)[1])
    assert len(examples()) == 4
    for line, shown in examples():
        got = run(line).replace(web, "127.0.0.1:8001")
        for text in got.splitlines():
            json.loads(text)
        batch_id = batch_id or json.loads(got)["id"]
        exact = "wait=" in line  # the submission's own answer may find the batch already begun
        assert mask(got, exact) == mask(shown, exact), line


def test_help_is_what_the_readme_shows():
    run = subprocess.run([harness.BINARY, "--help"], capture_output=True, text=True, check=True)
    assert f"```\n{run.stdout}```\n" in README
