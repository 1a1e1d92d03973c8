"""Promise 2 of docs/reliability.md, loss of power: a short form of tests/power/run."""
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import harness

sys.path.append(str(pathlib.Path(__file__).parents[1] / "power"))

import facts  # noqa: E402
import scenario  # noqa: E402

pytestmark = pytest.mark.skipif(harness.SANITIZED, reason="the recorder is preloaded, and so is the "
                                "sanitizers' runtime; what is recorded does not depend on the build")


@pytest.fixture(scope="module")
def recording(session_origin):
    directory = harness.temp_dir("power")
    service = scenario.record(directory / "service", harness.BINARY.parent, session_origin, batches=5,
                              ends=("kill", "stop"))
    yield service, facts.write(service.log)
    shutil.rmtree(directory)


def replay(service, *args):
    done = subprocess.run([harness.BINARY.parent / "power_replay", service.log,
                           service.log.with_suffix(".facts"), *map(str, args)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return done.returncode, done.stdout


def test_promise_2_power_loss(recording):
    service, told = recording
    for kind in ("accepted", "read"):
        assert told.get(kind), told
    status, text = replay(service, "--cuts", 250, "--compare", service.dir)
    assert status == 0, text
    assert " 0 broke a promise" in text


def test_promise_5_damaged_files(recording):
    """A short form: the long one is tests/power/run's."""
    status, text = scenario.damage(recording[0], "--step", 8192, "--flips", 30)
    assert status == 0, text
    assert re.search(r"the log cut: opened, whole \d+;\n", text), text
    assert "database flipped" in text and "refused" in text


@pytest.mark.parametrize("forget", ["-wal", "data"])
def test_promise_2_a_missing_sync_is_found(recording, forget):
    """The test of the test: as if the log, or the directories, were never synced."""
    status, text = replay(recording[0], "--cuts", 40, "--forget", forget)
    assert status == 1 and re.search(r"\b(lost|gone)\b", text), text
