"""Fixtures of the system tests: the real binary, a real nginx, and a toxic origin.

    BATCHFETCH_BIN        the program (default build/release/batchfetch)
    BATCHFETCH_SANITIZED  1: a sanitizer build, so smaller sizes and longer time limits
"""
import pathlib
import shutil
import socket
import sys
import time

import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import harness  # noqa: E402
from origin import Origin  # noqa: E402
from spec import validate_exchange  # noqa: E402
from toxic import Toxic  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than some seconds")
    config.addinivalue_line("markers", "bench: asserts a duration; not under sanitizers")


def pytest_runtest_setup(item):
    if harness.SANITIZED and item.get_closest_marker("bench"):
        pytest.skip("a sanitizer build is several times slower: durations prove nothing")


@pytest.fixture(autouse=True)
def exchanges():
    """Holds every exchange of a test against openapi.yaml when the test is over."""
    first = len(harness.EXCHANGES)
    yield harness.EXCHANGES
    failures = {}
    for exchange in harness.EXCHANGES[first:]:
        try:
            validate_exchange(exchange)
        except AssertionError as e:
            failures.setdefault(str(e), exchange)
        exchange.validated = True
        if len(exchange.body) > exchange.keep:
            exchange.body = exchange.body[:exchange.keep]
        if exchange.request_body is not None and len(exchange.request_body) > exchange.keep:
            exchange.request_body = exchange.request_body[:exchange.keep]
    if failures:
        text = "\n\n".join(f"{e.method} {e.path[:200]} -> {e.status}: {why[:2000]}"
                           for why, e in list(failures.items())[:5])
        pytest.fail(f"{len(failures)} kinds of exchanges break openapi.yaml:\n{text}",
                    pytrace=False)


@pytest.fixture(scope="session")
def session_origin():
    directory = harness.temp_dir("origin")
    origin = Origin(directory)
    try:
        yield origin.start()
    finally:
        origin.stop()
        shutil.rmtree(directory)


@pytest.fixture
def origin(session_origin):
    """nginx, with peaks and log reset."""
    session_origin.reset()
    return session_origin


@pytest.fixture
def silent():
    """The URL of an origin that takes connections and never answers; nothing of it stays behind."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.fixture(scope="session")
def toxic():
    server = Toxic()
    yield server
    server.stop()


class Services:
    """Starts services and sees to their proper end."""

    def __init__(self):
        self.started = []

    def __call__(self, *args, **more):
        service = harness.Service(harness.temp_dir("service"), *args, **more)
        self.started.append(service)
        return service.start()

    def close(self):
        errors = []
        for service in self.started:
            try:
                service.stop()
            except AssertionError as e:
                errors.append(str(e))
            finally:
                shutil.rmtree(service.dir, ignore_errors=True)
        assert not errors, "\n".join(errors)


@pytest.fixture
def start():
    """start(*args, allow_net=…, env=…): a service for this test alone."""
    services = Services()
    yield services
    services.close()


@pytest.fixture(scope="module")
def module_services():
    """Like start, for services that a module's tests share."""
    services = Services()
    yield services
    services.close()


@pytest.fixture(scope="module")
def module_service(request, module_services):
    """One service for a module's tests; its options: SERVICE_ARGS of the module."""
    return module_services(*getattr(request.module, "SERVICE_ARGS", []))


@pytest.fixture
def service(module_service):
    """The module's service, which must have survived the test."""
    yield module_service
    module_service.alive()
    module_service.no_reports()
    settle(module_service)


def settle(service):
    """What a test leaves under way is not to be a hit of the next one's at the origin. Not for long:
    some leave what never ends."""
    end = time.monotonic() + 1
    pending = [f'batchfetch_requests_pending{{state="{state}"}}' for state in ("queued", "in_flight")]
    while any(service.metric(name) > 0 for name in pending) and time.monotonic() < end:
        time.sleep(0.005)
