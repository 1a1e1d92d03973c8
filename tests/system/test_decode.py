"""Compressed bodies: undone; found out when cut short or damaged; bounded; and what is kept of what
cannot be decoded."""
import pytest

import coders
from harness import SLOWER
from test_submit import echoed
from toxic import PLAIN, Toxic, head, whole


class Coded(Toxic):
    """Answers /coded/NAME with the bytes that were put there."""

    def __init__(self):
        self.answers = {}
        super().__init__()

    def do_coded(self, conn, arg, query):
        conn.sendall(self.answers[arg])
        return "keep"

    def put(self, data, *fields, status="200 OK"):
        name = str(len(self.answers))
        self.answers[name] = whole(data, *fields, "Content-Type: text/plain", status=status)
        return self.url("/coded/" + name)


@pytest.fixture(scope="module")
def coded():
    server = Coded()
    yield server
    server.stop()


def code(result):
    return result["error"]["code"] if result["error"] else "succeeded"


@pytest.mark.parametrize("coding", coders.CODERS)
def test_a_body_cut_short_within_a_right_content_length_is_found_out(service, coded, coding):
    """At every byte of it. Kept is what was decoded, or all of it as it came if nothing was."""
    data = coders.CODERS[coding](PLAIN)
    field = f"Content-Encoding: {coding}"
    urls = [coded.put(data[:n], field) for n in range(len(data) + 1)]
    results = service.run(urls, limits={"max_per_host": 8})
    assert code(results[0]) == "succeeded" and results[0]["body_bytes"] == 0
    assert code(results[-1]) == "succeeded" and results[-1]["body"].encode() == PLAIN
    for n, r in enumerate(results[1:-1], 1):
        assert code(r) == "decode" and not r["error"]["retryable"] and r["body_bytes"] > 0, (n, r)
        body = service.body(r)
        if r["truncated"]:
            assert PLAIN.startswith(body), (n, r)
        else:
            assert body == data[:n], (n, r)


def nested(*names):
    data = PLAIN
    for name in names:
        data = coders.CODERS[name](data)
    return data


@pytest.mark.parametrize("names", [["gzip", "br"], ["zstd", "zstd"], ["deflate", "gzip", "br"],
                                   ["gzip", "zstd", "br", "deflate", "gzip"]])
def test_codings_in_one_another_are_undone(service, coded, names):
    data = nested(*names)
    one_field = coded.put(data, "Content-Encoding: " + ", ".join(names))
    many_fields = coded.put(data, *(f"Content-Encoding: {name}" for name in names))
    for result in service.run([one_field, many_fields]):
        assert code(result) == "succeeded" and result["body"].encode() == PLAIN, result


@pytest.mark.parametrize("field", ["identity", "", "none", "aws-chunked", "utf-8", "identity,"])
def test_what_is_no_coding_changes_nothing(service, coded, field):
    result = service.one(coded.put(PLAIN, f"Content-Encoding: {field}"))
    assert code(result) == "succeeded" and result["body"].encode() == PLAIN, result


@pytest.mark.parametrize("field", ["compress", "none-such", "gzip;q=1", "gzip,gzip,gzip,gzip,br,br",
                                   "gzip, none-such"])
def test_a_coding_that_nobody_can_undo_leaves_the_body_as_it_came(service, coded, field):
    result = service.one(coded.put(PLAIN * 100, f"Content-Encoding: {field}"))
    assert code(result) == "decode" and not result["truncated"], result
    assert service.body(result) == PLAIN * 100
    assert result["headers"]["content-encoding"] == [field]


@pytest.mark.parametrize("coding", coders.CODERS)
def test_a_wrong_label_leaves_the_body_as_it_came(service, coded, coding):
    result = service.one(coded.put(PLAIN * 100, f"Content-Encoding: {coding}"))
    assert code(result) == "decode" and not result["truncated"], result
    assert service.body(result) == PLAIN * 100


def test_what_follows_a_complete_body_is_ignored(service, coded):
    urls = [coded.put(coder(PLAIN) + b"<!-- -->", f"Content-Encoding: {name}")
            for name, coder in coders.CODERS.items()]
    for result in service.run(urls):
        assert code(result) == "succeeded" and result["body"].encode() == PLAIN, result


def test_a_status_says_more_than_a_coding(service, coded):
    url = coded.put(PLAIN, "Content-Encoding: gzip", status="503 Busy")
    result = service.one(url)
    assert code(result) == "http_status" and result["error"]["retryable"], result
    assert service.body(result) == PLAIN


def test_a_part_of_coded_bytes_stays_as_it_came(service, coded, origin):
    data = coders.gzip(PLAIN)
    url = coded.put(data[5:50], "Content-Encoding: gzip", "Content-Range: bytes 5-49/99",
                    status="206 Partial Content")
    result = service.one(url)
    assert code(result) == "succeeded" and service.body(result) == data[5:50]
    echo = service.one(origin.url("/echo"), headers={"Range": "bytes=0-9"})
    assert echoed(echo)[1]["accept-encoding"] == ["identity"]
    echo = service.one(origin.url("/echo"), headers={"Range": "bytes=0-9",
                                                     "Accept-Encoding": "br"})
    assert echoed(echo)[1]["accept-encoding"] == ["br"]


def test_a_transfer_coding_is_undone_too(service, coded):
    data = coders.gzip(coders.br(PLAIN))
    coded.answers["te"] = (head("200 OK", "Transfer-Encoding: gzip, chunked",
                                "Content-Encoding: br") +
                           b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
    result = service.one(coded.url("/coded/te"))
    assert code(result) == "succeeded" and result["body"].encode() == PLAIN, result


@pytest.mark.parametrize("names", [["gzip"], ["deflate"], ["br"], ["zstd"], ["gzip"] * 5,
                                   ["br", "zstd"]])
def test_a_bomb_is_cut_at_the_decoded_limit(service, coded, names):
    data = bytes(32 << 20)
    for name in names:
        data = coders.CODERS[name](data)
    before = service.status_kb("VmHWM")
    result = service.one(coded.put(data, "Content-Encoding: " + ",".join(names)),
                         max_body_bytes=1_000_000)
    assert code(result) == "too_large" and result["truncated"], result
    assert service.body(result) == bytes(1_000_000)
    assert service.status_kb("VmHWM") - before < (24 << 10) * SLOWER


@pytest.mark.parametrize("window, expected", [(23, "succeeded"), (24, "decode")])
def test_windows_beyond_eight_mebibytes_are_refused(service, coded, window, expected):
    """RFC 9659."""
    data = coders.zstd(PLAIN, window=window)
    result = service.one(coded.put(data, "Content-Encoding: zstd"))
    assert code(result) == expected
    assert service.body(result) == (PLAIN if expected == "succeeded" else data)


def test_limits_count_decoded_bytes(service, coded):
    """However much longer the coded ones are."""
    stored = coders.gzip(b"abc")
    urls = {3: "succeeded", 2: "too_large", 0: "too_large"}
    for limit, expected in urls.items():
        result = service.one(coded.put(stored, "Content-Encoding: gzip"), max_body_bytes=limit)
        assert code(result) == expected and result["body_bytes"] == limit, result
    empty = service.one(coded.put(coders.gzip(b""), "Content-Encoding: gzip"), max_body_bytes=0)
    assert code(empty) == "succeeded" and empty["body_bytes"] == 0
