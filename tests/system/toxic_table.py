"""The table of toxic origins: what each does and what must come out of it. The table is the test
(test_toxic_table.py) and, printed, its own documentation: python3 tests/system/toxic_table.py.

The rows' numbers are those of the list of 36 kinds in docs/reliability.md.
"""
import dataclasses

import coders
from toxic_origin import PLAIN, chunk, head, whole

T = 300        # ms: of what ends by its timeout
MAX = 100_000  # max_body_bytes of what is too large


@dataclasses.dataclass
class Case:
    row: int
    name: str
    sends: object         # bytes, or a function of the Conn
    code: object          # "succeeded" or an error code; several where only chance decides
    status: object = None
    body: object = None   # the stored bytes; None: none; ... : whatever
    truncated: bool = False
    keep: bool = False    # the origin leaves the connection open after `sends`
    reuse: bool = True    # False: no other request may go over its connection
    via: str = "plain"    # the listener
    request: dict = dataclasses.field(default_factory=dict)
    batch: dict = dataclasses.field(default_factory=dict)
    attempts: int = 1
    redirects: int = 0
    retryable: object = None  # None: as the code has it
    waits: bool = False   # ends by a timeout
    within: float = 1.0   # seconds; of those that wait: more than the timeout
    memory: int = 2048    # KiB that the process may grow by meanwhile
    url: object = None    # instead of the listener's
    check: object = None  # function(result, service), asserts more

    @property
    def codes(self):
        return (self.code,) if isinstance(self.code, str) else self.code


CASES = []


def case(row, name, sends, code="protocol", **more):
    CASES.append(Case(row, name, sends, code, **more))


def good(row, name, sends, body=PLAIN, **more):
    case(row, name, sends, "succeeded", **{"status": 200, "body": body, **more})


def late(row, name, sends, **more):
    more.setdefault("request", {})
    more["request"] = {"timeout_ms": T, **more["request"]}
    case(row, name, sends, "timeout", waits=True, **more)


def large(row, name, sends, body=b"e" * MAX, **more):
    more["request"] = {"max_body_bytes": MAX, **more.get("request", {})}
    case(row, name, sends, "too_large", **{"status": 200, "body": body, "truncated": True, **more})


def steps(*parts):
    """A behaviour: bytes are sent, functions called with the Conn; the last one's value counts."""
    def run(conn):
        value = None
        for part in parts:
            value = conn.send(part) if isinstance(part, bytes) else part(conn)
        return value
    return run


def flood(piece):
    return lambda conn: conn.flood(piece)


def drip(data):
    return lambda conn: conn.drip(data)


def hang(conn):
    conn.wait_gone()


def rst(conn):
    return conn.reset()


def seen(conn):
    conn.pause(0.15)


def keep(conn):
    return "keep"


OK = head("200 OK", "Content-Length: 2")
CHUNKED = head("200 OK", "Transfer-Encoding: chunked")
CLOSING = head("200 OK", "Connection: close")
LAST = b"0\r\n\r\n"

# ---- 1 to 7: connections and time ----

case(1, "closed-port", None, "connect", url="http://127.0.0.77:9/", within=0.3)
case(1, "closed-port-tls", None, "connect", url="https://127.0.0.77:9/", within=0.3)
case(2, "no-syn-ack", None, "timeout", via="backlogged", waits=True,
     request={"connect_timeout_ms": T, "timeout_ms": 20000})
late(3, "silent", hang)
late(3, "silent-after-post", hang, request={"method": "POST", "body": "x" * 1000})
late(3, "silent-after-interim", steps(head("100 Continue"), hang))
late(3, "reads-no-upload", lambda conn: conn.pause(20), via="deaf",
     request={"method": "PUT", "body": "x" * 4_000_000})
case(4, "closes", b"")
case(4, "closes-at-once", lambda conn: None, via="closes")
case(4, "half-closes", steps(lambda conn: conn.sock.shutdown(1), hang))
case(5, "rst", rst, ("protocol", "connect"))
case(5, "rst-at-once", rst, ("protocol", "connect"), via="resets")
case(5, "rst-in-status-line", steps(b"HTTP/1.1 20", seen, rst))
case(5, "rst-in-head", steps(b"HTTP/1.1 200 OK\r\nContent-Le", seen, rst))
case(5, "rst-after-head", steps(head("200 OK", "Content-Length: 9"), seen, rst), status=200,
     body=b"", truncated=True)
case(5, "rst-in-body", steps(head("200 OK", "Content-Length: 1000") + b"x" * 300, seen, rst),
     status=200, body=b"x" * 300, truncated=True)
case(5, "rst-in-chunks", steps(CHUNKED + chunk(b"x" * 300), seen, rst), status=200,
     body=b"x" * 300, truncated=True)
case(5, "rst-instead-of-end", steps(CLOSING + b"x" * 300, seen, rst), status=200,
     body=b"x" * 300, truncated=True)
case(5, "rst-instead-of-end-1.0", steps(head("200 OK", version="HTTP/1.0") + b"x" * 300, seen, rst),
     status=200, body=b"x" * 300, truncated=True)
case(5, "rst-in-interim", steps(head("103 Early Hints"), seen, rst))
good(5, "rst-after-all", steps(whole(PLAIN), seen, rst))
late(6, "drips-status-line", drip(b"HTTP/1.1 200 " + b"O" * 1000))
late(6, "drips-head", steps(b"HTTP/1.1 200 OK\r\n", drip(b"X-A: b\r\n" * 100)))
late(6, "drips-interim", drip(head("102 Processing") * 100))
for name, start in (("length", head("200 OK", "Content-Length: 1000")), ("close", CLOSING),
                    ("1.0", head("200 OK", version="HTTP/1.0"))):
    late(7, f"drips-body-{name}", steps(start + b"d", drip(b"d" * 999)), status=200,
         body=lambda b: set(b) == {ord("d")}, truncated=True)
late(7, "drips-chunks", steps(CHUNKED + chunk(b"d"), drip(chunk(b"d") * 300)), status=200,
     body=lambda b: set(b) == {ord("d")}, truncated=True)
late(7, "stalls-before-last-chunk", steps(CHUNKED + chunk(b"abc"), hang), status=200, body=b"abc",
     truncated=True)
late(7, "stalls-in-gzip", steps(head("200 OK", "Content-Length: 99", "Content-Encoding: gzip") +
                                coders.gzip(PLAIN)[:20], hang), status=200, body=..., truncated=True)

# ---- 8, 9: size ----

large(8, "endless", steps(CLOSING, flood(b"e" * 65536)))
large(8, "endless-1.0", steps(head("200 OK", version="HTTP/1.0"), flood(b"e" * 65536)))
large(8, "endless-chunks", steps(CHUNKED, flood(chunk(b"e" * 65536))))
large(8, "endless-small-chunks", steps(CHUNKED, flood(chunk(b"e") * 1000)))
large(8, "endless-one-chunk", steps(CHUNKED + b"7fffffff\r\n", flood(b"e" * 65536)))
large(8, "one-byte-too-many", whole(b"e" * (MAX + 1)), body=b"")
large(8, "one-byte-too-many-chunked", CHUNKED + chunk(b"e" * (MAX + 1)) + LAST)
good(8, "as-large-as-allowed", whole(b"e" * MAX), body=b"e" * MAX,
     request={"max_body_bytes": MAX})
large(9, "length-10-gib", steps(head("200 OK", "Content-Length: 10737418240"), flood(b"z" * 1000)),
      body=b"")
large(9, "length-max", steps(head("200 OK", f"Content-Length: {2**63 - 10**18}"), hang), body=b"")

# ---- 10 to 13: lengths ----

case(10, "short", head("200 OK", "Content-Length: 1000") + b"y" * 600, status=200, body=b"y" * 600,
     truncated=True)
case(10, "short-by-one", head("200 OK", "Content-Length: 1000") + b"y" * 999, status=200,
     body=b"y" * 999, truncated=True)
case(10, "short-none", head("200 OK", "Content-Length: 1"), status=200, body=b"", truncated=True)
case(10, "short-404", head("404 Not Found", "Content-Length: 100") + b"gone", status=404,
     body=b"gone", truncated=True)
case(10, "short-206", head("206 Partial Content", "Content-Length: 10",
                           "Content-Range: bytes 0-9/10") + b"y" * 6, status=206, body=b"y" * 6,
     truncated=True)
case(10, "short-redirect", head("302 Found", "Location: /ok", "Content-Length: 100") + b"y" * 6,
     status=302, body=b"", truncated=True)
case(10, "short-in-kept", steps(head("200 OK", "Content-Length: 1000") + b"y" * 600, seen), status=200,
     body=b"y" * 600, truncated=True)
good(11, "long", whole(b"declared") + b"and more than that", body=b"declared", reuse=False)
good(11, "long-kept", whole(b"declared") + b"and more than that", body=b"declared", keep=True,
     reuse=False)
for name, pause in (("at-once", 0.001), ("soon", 0.01), ("later", 0.1)):
    good(11, f"long-{name}", steps(whole(b"declared"), lambda conn, s=pause: conn.pause(s),
                                   b"and more", keep), body=b"declared")
good(11, "long-none", whole(b"") + b"and more than that", body=b"", keep=True)
good(11, "long-flood", steps(whole(b"declared"), flood(b"x" * 65536)), body=b"declared",
     reuse=False)
for name, fields in {
        "two": ["Content-Length: 3", "Content-Length: 5"],
        "two-the-other-way": ["Content-Length: 5", "Content-Length: 3"],
        "negative": ["Content-Length: -5"], "plus": ["Content-Length: +5"],
        "hex": ["Content-Length: 0x5"], "2-to-64": ["Content-Length: 18446744073709551621"],
        "2-to-63": ["Content-Length: 9223372036854775808"], "list": ["Content-Length: 5, 5"],
        "list-differs": ["Content-Length: 3, 5"], "word": ["Content-Length: five"],
        "none": ["Content-Length:"], "space": ["Content-Length: 5 5"],
        "float": ["Content-Length: 5.0"], "comma": ["Content-Length: 5,"],
        "utf-8": ["Content-Length: \u00b2"], "semicolon": ["Content-Length: 5;x"]}.items():
    case(12, f"lengths-{name}", head("200 OK", *fields) + b"abcde", reuse=False, keep=True)
good(12, "lengths-twice-the-same", head("200 OK", "Content-Length: 5", "Content-Length: 5") +
     b"abcde", body=b"abcde")
good(12, "lengths-zeros", head("200 OK", "Content-Length: 00005") + b"abcde", body=b"abcde")
good(12, "lengths-blanks", head("200 OK", "Content-Length: \t 5 \t") + b"abcde", body=b"abcde")
for name, order in (("te-cl", 0), ("cl-te", 1)):
    fields = ["Transfer-Encoding: chunked", "Content-Length: 3"]
    good(13, name, head("200 OK", *(fields[::-1] if order else fields)) + chunk(b"abcde") + LAST,
         body=b"abcde", keep=True, reuse=False)
good(13, "te-cl-poison", head("200 OK", "Transfer-Encoding: chunked", "Content-Length: 10") +
     chunk(b"abcde") + LAST + whole(b"poison"), body=b"abcde", keep=True, reuse=False)
case(13, "te-twice", head("200 OK", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") +
     chunk(b"abcde") + LAST, ("protocol", "succeeded"), status=..., body=..., truncated=...,
     keep=True)
case(13, "te-unknown", head("200 OK", "Transfer-Encoding: none-such") + b"abcde", "decode",
     status=200, body=b"abcde")
good(13, "te-identity", head("200 OK", "Transfer-Encoding: identity") + b"abcde", body=b"abcde")
good(13, "te-1.0", head("200 OK", "Transfer-Encoding: chunked", version="HTTP/1.0") +
     chunk(b"abcde") + LAST, body=...)

# ---- 14, 15: chunks ----

for name, data, body in (
        ("bad-size", chunk(b"abcde") + b"zz\r\nabc\r\n", b"abcde"),
        ("overflow", b"fffffffffffffffff1\r\nabc\r\n" + LAST, b""),
        ("negative", b"-5\r\nabcde\r\n" + LAST, b""), ("plus", b"+5\r\nabcde\r\n" + LAST, b""),
        ("no-size", b"\r\nabcde\r\n" + LAST, b""), ("nul-size", b"\x005\r\nabcde\r\n" + LAST, b""),
        ("size-only-extension", b";x=1\r\nabcde\r\n" + LAST, b""),
        ("no-end-of-chunk", b"5\r\nabcdefgh" + LAST, b"abcde"),
        ("chunk-too-short", b"9\r\nabcde\r\n" + LAST, None),
        ("no-last", chunk(b"abcde"), b"abcde"), ("no-end", chunk(b"abcde") + b"0\r\n", b"abcde"),
        ("nothing", b"", b""), ("plain", PLAIN, b"")):
    case(14, f"chunks-{name}", CHUNKED + data, status=200, body=... if body is None else body,
         truncated=True)
case(14, "trailer-nul", CHUNKED + chunk(b"abcde") + b"0\r\nX-T: a\0b\r\n\r\n",
     ("protocol", "succeeded"), status=200, body=..., truncated=...)
good(14, "chunks-upper-case", CHUNKED + b"A\r\n0123456789\r\n" + LAST, body=b"0123456789")
good(14, "chunks-zeros", CHUNKED + b"0000005\r\nabcde\r\n000\r\n\r\n", body=b"abcde")
good(14, "chunks-blank", CHUNKED + b"5 \r\nabcde\r\n0 \r\n\r\n", body=b"abcde")
good(14, "trailers", CHUNKED + chunk(b"abcde") + b"0\r\nX-T: t\r\nX-U: u\r\n\r\n", body=b"abcde",
     check=lambda r, s: r["headers"].get("x-t") is None or "trailers are no headers")
good(15, "extension", CHUNKED + b"5;a=b;c=\"d\"\r\nabcde\r\n" + LAST, body=b"abcde")
good(15, "extension-1-mib", CHUNKED + b"5;" + b"x" * (1 << 20) + b"\r\nabcde\r\n" + LAST,
     body=b"abcde")
case(15, "extension-endless", steps(CHUNKED + b"5;", flood(b"x" * 65536)), ("timeout", "protocol"),
     waits=True, request={"timeout_ms": T}, status=200, body=b"", truncated=True)
case(15, "trailers-300", CHUNKED + chunk(b"abcde") + b"0\r\n" + b"X-T: t\r\n" * 300 + b"\r\n",
     "too_large", status=200, body=b"abcde", truncated=True)
case(15, "trailers-endless", steps(CHUNKED + chunk(b"abcde") + b"0\r\n", flood(b"X-T: t\r\n" * 99)),
     "too_large", status=200, body=b"abcde", truncated=True)
case(15, "trailer-endless-line", steps(CHUNKED + chunk(b"abcde") + b"0\r\nX-T: ", flood(b"t" * 9999)),
     ("too_large", "protocol"), status=200, body=b"abcde", truncated=True)

# ---- 16, 17: header fields ----

BEGIN = b"HTTP/1.1 200 OK\r\n"
case(16, "fields-endless", steps(BEGIN, flood(b"X-Flood: " + b"h" * 1000 + b"\r\n")), "too_large",
     memory=1024)
case(16, "fields-endless-small", steps(BEGIN, flood(b"a:\r\n" * 1000)), "too_large", memory=1024)
case(16, "field-endless", steps(BEGIN + b"X-Big: ", flood(b"h" * 65536)), "too_large", memory=1024)
case(16, "field-name-endless", steps(BEGIN, flood(b"h" * 65536)), "too_large", memory=1024)
case(16, "field-1-mib", steps(BEGIN + b"X-Big: " + b"h" * (1 << 20) + b"\r\n\r\n"), "too_large",
     memory=1024)
case(16, "fields-100000", steps(BEGIN + b"X-A: b\r\n" * 100_000 + b"\r\n"), "too_large",
     memory=1024)
case(16, "fields-250", BEGIN + b"X-A: b\r\n" * 250 + b"\r\n", "too_large")
case(16, "status-line-endless", steps(b"HTTP/1.1 200 ", flood(b"O" * 65536)), "too_large",
     memory=1024)
case(16, "no-line-endless", flood(b"O" * 65536), "protocol")
case(16, "blanks-endless", steps(BEGIN + b"X-A:", flood(b" " * 65536)), "too_large", memory=1024)
case(16, "folds-endless", steps(BEGIN + b"X-A: b\r\n", flood(b" c\r\n" * 1000)), "too_large",
     memory=1024)
good(16, "fields-180", BEGIN + b"X-A: b\r\n" * 180 + b"Content-Length: 2\r\n\r\nok", body=b"ok")
good(16, "fields-60-kb", BEGIN + (b"X-A: " + b"b" * 590 + b"\r\n") * 100 +
     b"Content-Length: 2\r\n\r\nok", body=b"ok")


def fields(want):
    def check(result, service):
        for name, value in want.items():
            assert result["headers"].get(name) == value, (name, value, result["headers"])
    return check


good(17, "folded", head("200 OK", "X-Folded: one", "  two", "\tthree", "Content-Length: 2") + b"ok",
     body=b"ok", check=fields({"x-folded": ["one two three"]}))
good(17, "bare-lf", b"HTTP/1.1 200 OK\nX-A: b\nContent-Length: 2\n\nok", body=b"ok",
     check=fields({"x-a": ["b"]}))
good(17, "space-before-colon", head("200 OK", "X-A : b", "Content-Length: 2") + b"ok", body=b"ok",
     check=fields({"x-a": None, "x-a ": None}))
case(17, "length-space-before-colon", head("200 OK", "Content-Length : 2") + b"okay",
     ("protocol", "succeeded"), status=..., body=..., truncated=..., reuse=False)
case(17, "nul-in-value", head("200 OK", "X-Nul: a\0b", "Content-Length: 2") + b"ok")
case(17, "nul-in-name", head("200 OK", "X-N\0l: ab", "Content-Length: 2") + b"ok")
case(17, "nul-in-status-line", b"HTTP/1.1 200 O\0K\r\nContent-Length: 2\r\n\r\nok")
case(17, "no-colon", head("200 OK", "nothing here", "Content-Length: 2") + b"ok")
good(17, "no-name", head("200 OK", ": value", "Content-Length: 2") + b"ok", body=b"ok",
     check=fields({"": None}))
good(17, "bare-cr", head("200 OK", "X-A: b\rX-Evil: c", "Content-Length: 2") + b"ok", body=b"ok",
     check=fields({"x-evil": None}))
good(17, "controls", head("200 OK", "X-A: \x01\x08\x1b[2J\x7f", "Content-Length: 2") + b"ok",
     body=b"ok", check=fields({"x-a": ["\x01\x08\x1b[2J\x7f"]}))
good(17, "name-utf-8", "HTTP/1.1 200 OK\r\nX-\u00c4: b\r\nContent-Length: 2\r\n\r\nok".encode(),
     body=b"ok")
good(17, "utf-8", BEGIN + "X-A: caf\u00e9 \u20ac \U0001f600\r\nContent-Length: 2\r\n\r\nok".encode(),
     body=b"ok", check=fields({"x-a": ["caf\u00e9 \u20ac \U0001f600"]}))
for name, data in (("latin-1", b"caf\xe9"), ("overlong", b"\xc0\xaf"), ("surrogate", b"\xed\xa0\x80"),
                   ("cut", b"\xe2\x82"), ("bytes", bytes(range(128, 256)))):
    good(17, f"no-utf-8-{name}", BEGIN + b"X-A: " + data + b"\r\nContent-Length: 2\r\n\r\nok",
         body=b"ok", check=fields({"x-a": [data.decode("latin-1")]}))
good(17, "quotes", head("200 OK", 'X-A: "\\<>&', "Content-Length: 2") + b"ok", body=b"ok",
     check=fields({"x-a": ['"\\<>&']}))

# ---- 18 to 21: statuses and what follows ----

for name, line in {
        "word": "HTTP/1.1 twohundred OK", "00": "HTTP/1.1 00 OK", "negative": "HTTP/1.1 -1 OK",
        "1000": "HTTP/1.1 1000 OK", "099": "HTTP/1.1 099 OK", "2000": "HTTP/1.1 20000 OK",
        "none": "HTTP/1.1", "none-blank": "HTTP/1.1 ", "1.2": "HTTP/1.2 200 OK",
        "0.9": "HTTP/0.9 200 OK", "2": "HTTP/2 200 OK", "2.0": "HTTP/2.0 200 OK",
        "3": "HTTP/3 200 OK", "icy": "ICY 200 OK", "lower-case": "http/1.1 200 OK",
        "no-blank": "HTTP/1.1200 OK", "blank-first": " HTTP/1.1 200 OK", "shoutcast": "200 OK",
        "smtp": "220 mail.test ESMTP", "ssh": "SSH-2.0-OpenSSH_9.2"}.items():
    case(18, f"status-{name}", (line + "\r\nContent-Length: 2\r\n\r\nok").encode(), reuse=False)
case(18, "status-999", whole(b"odd", status="999 Odd"), "http_status", status=999, body=b"odd")
case(18, "status-600", whole(b"odd", status="600 Odd"), "http_status", status=600, body=b"odd")
good(18, "status-no-reason", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", body=b"ok")
case(18, "http-0.9", b"<html>no status line at all</html>")
case(18, "binary", bytes(range(256)) * 4)
case(18, "empty-lines", b"\r\n\r\n" + whole(b"ok"))
case(18, "tls-record", b"\x15\x03\x01\x00\x02\x02\x46")
for status in (100, 102, 103, 199):
    case(19, f"interim-{status}-endless", flood(head(f"{status} Wait", "X-A: b") * 50),
         ("protocol", "too_large"))
case(19, "interim-only", head("103 Early Hints", "Link: </a>"))
case(19, "interim-21", head("102 Processing") * 21 + whole(PLAIN))
good(19, "interim-15", head("102 Processing") * 15 + whole(PLAIN))
good(19, "interim-fields-are-not-kept", head("103 Early Hints", "X-Early: 1", "Content-Length: 7",
                                             "Content-Encoding: gzip") + whole(PLAIN),
     check=fields({"x-early": None, "content-encoding": None}))
case(19, "switches-protocols", steps(head("101 Switching Protocols", "Upgrade: x",
                                          "Connection: upgrade") + b"\x81\x02hi", seen),
     ("protocol", "timeout"), request={"timeout_ms": 600})
for status in (204, 304):
    good(20, f"{status}-with-body", head(f"{status} None", "Content-Length: 5") + b"abcde",
         status=status, body=b"", keep=True, reuse=status == 304)
    good(20, f"{status}-chunked", head(f"{status} None", "Transfer-Encoding: chunked") +
         chunk(b"abcde") + LAST, status=status, body=b"", keep=True, reuse=False)
    good(20, f"{status}-poison", head(f"{status} None") + whole(b"poison"), status=status, body=b"",
         keep=True)
    good(20, f"{status}-with-body-later", steps(head(f"{status} None"),
         lambda conn: conn.pause(0.005), b"abcde", keep), status=status, body=b"")
good(20, "304-without-asking", head("304 Not Modified", 'ETag: "a"'), status=304, body=b"",
     keep=True)
good(20, "304-with-length-and-coding", head("304 Not Modified", "Content-Length: 5",
                                            "Content-Encoding: gzip"), status=304, body=b"",
     keep=True)
good(20, "205-with-body", whole(b"abcde", status="205 Reset"), status=205, body=...)
good(20, "206-without-asking", whole(b"abcde", "Content-Range: bytes 0-4/10",
                                     status="206 Partial Content"), status=206, body=b"abcde")
good(20, "206-another-range", whole(b"abcde", "Content-Range: bytes 90-94/100",
                                    status="206 Partial Content"), status=206, body=b"abcde",
     request={"headers": {"Range": "bytes=0-4"}})
good(20, "206-no-range", whole(b"abcde", status="206 Partial Content"), status=206, body=b"abcde")
good(20, "head-with-body", whole(b"abcde"), body=b"", request={"method": "HEAD"}, keep=True)
good(20, "head-chunked", CHUNKED, body=b"", request={"method": "HEAD"}, keep=True)
good(20, "head-10-gib", head("200 OK", "Content-Length: 10737418240"), body=b"",
     request={"method": "HEAD"}, keep=True)
good(20, "head-coded", head("200 OK", "Content-Encoding: gzip", "Content-Length: 99"), body=b"",
     request={"method": "HEAD"}, keep=True)
good(21, "poison", whole(b"right") + whole(b"poison"), body=b"right", keep=True, reuse=False)
good(21, "poison-many", whole(b"right") + whole(b"poison") * 100, body=b"right", keep=True,
     reuse=False)
good(21, "poison-half", whole(b"right") + b"HTTP/1.1 200 OK\r\nX-Fold: ", body=b"right", keep=True,
     reuse=False)
good(21, "poison-chunked", CHUNKED + chunk(b"right") + LAST + whole(b"poison"), body=b"right",
     keep=True)
good(21, "poison-empty-line", whole(b"right") + b"\r\n", body=b"right", keep=True)
good(21, "poison-408", whole(b"right") + head("408 Request Timeout", "Connection: close"),
     body=b"right", keep=True, reuse=False)
good(21, "poison-interim", whole(b"right") + head("100 Continue"), body=b"right", keep=True,
     reuse=False)


def coded(data, *names, **more):
    return whole(data, "Content-Encoding: " + ", ".join(names), "Content-Type: text/plain", **more)


# ---- 22 to 24: content codings ----

ZEROS = bytes(8 << 20)
BOMBS = {"gzip": ["gzip"], "deflate": ["deflate"], "br": ["br"], "zstd": ["zstd"],
         "gzip-2": ["gzip"] * 2, "gzip-5": ["gzip"] * 5, "br-in-gzip": ["br", "gzip"],
         "zstd-in-br": ["zstd", "br"], "all": ["gzip", "deflate", "br", "zstd"]}
_bombs = {}


def bomb(names):
    """8 MiB of zeros, coded; made when first asked for."""
    def run(conn):
        key = ",".join(names)
        if key not in _bombs:
            data = ZEROS
            for name in names:
                data = coders.CODERS[name](data)
            _bombs[key] = data
        conn.send(coded(_bombs[key], *names))
    return run


def make_bombs():
    class Nobody:
        def send(self, data):
            pass
    for names in BOMBS.values():
        bomb(names)(Nobody())


for name, names in BOMBS.items():
    large(22, f"bomb-{name}", bomb(names), body=bytes(MAX), memory=12 << 10)
large(22, "bomb-endless", steps(head("200 OK", "Content-Encoding: gzip"),
                                flood(coders.gzip(bytes(1 << 20)))), body=bytes(MAX))
large(22, "bomb-of-nothing", steps(head("200 OK", "Content-Encoding: gzip"),
                                   flood(coders.gzip(b"") * 1000)), body=b"")
large(22, "bomb-of-names", steps(head("200 OK", "Content-Encoding: gzip") +
                                 b"\x1f\x8b\x08\x08\0\0\0\0\0\x03", flood(b"n" * 65536)), body=b"")
large(22, "bomb-skipped", steps(head("200 OK", "Content-Encoding: zstd"),
                                flood(b"\x50\x2a\x4d\x18\xf8\xff\0\0" + b"s" * 65528)), body=b"")
PACKED = coders.gzip(PLAIN)
for name, data, body in (
        ("block-type", PACKED[:10] + b"\x07" * 40, None), ("crc", PACKED[:-8] + b"\0" * 4 +
                                                           PACKED[-4:], PLAIN),
        ("length", PACKED[:-4] + b"\0" * 4, PLAIN), ("no-trailer", PACKED[:-8], PLAIN),
        ("half-trailer", PACKED[:-3], PLAIN), ("head-only", PACKED[:10], None),
        ("method", b"\x1f\x8b\x07" + PACKED[3:], None), ("one-byte", b"\x1f", None),
        ("second-member-cut", PACKED * 2 + PACKED[:40], PLAIN * 3)):
    case(23, f"gzip-{name}", coded(data, "gzip"), "decode", status=200,
         body=data if body is None else (lambda b, body=body: body.startswith(b) and b),
         truncated=body is not None)
for name, coder in coders.CODERS.items():
    data = coder(PLAIN)
    case(23, f"cut-{name}", coded(data[:-1], name), "decode", status=200, body=...,
         truncated=...)
    case(23, f"cut-{name}-chunked", head("200 OK", "Transfer-Encoding: chunked",
                                         f"Content-Encoding: {name}") + chunk(data[:-1]) + LAST,
         "decode", status=200, body=..., truncated=...)
    case(23, f"label-{name}", coded(PLAIN, name), "decode", status=200, body=PLAIN)
    case(23, f"label-{name}-of-another", coded(coders.br(PLAIN) if name != "br" else
                                               coders.gzip(PLAIN), name), "decode", status=200,
         body=...)
    good(23, f"junk-after-{name}", coded(data + b"<!-- -->", name))
    good(23, f"empty-{name}", coded(b"", name), body=b"")
case(23, "cut-and-short", head("200 OK", "Content-Length: 99", "Content-Encoding: gzip") +
     PACKED[:40], status=200, body=..., truncated=True)
case(23, "label-503", coded(PLAIN, "gzip", status="503 Busy"), "http_status", status=503,
     body=PLAIN, retryable=True)
case(23, "zstd-window", coded(coders.zstd(PLAIN, window=24), "zstd"), "decode", status=200,
     body=coders.zstd(PLAIN, window=24))
case(23, "zstd-window-2-gib", coded(coders.zstd(PLAIN, window=31), "zstd"), "decode", status=200,
     body=coders.zstd(PLAIN, window=31))
for name in ("none-such", "compress", "gzip;q=1", "dcb", "\xff", "gzip gzip"):
    case(24, f"coding-{name.encode().hex() if not name.isascii() else name.replace(' ', '+')}",
         coded(PLAIN, name), "decode", status=200, body=PLAIN)
case(24, "codings-6", coded(PLAIN, *["gzip"] * 6), "decode", status=200, body=PLAIN)
case(24, "codings-1000", coded(PLAIN, *["gzip"] * 1000), "decode", status=200, body=PLAIN)
case(24, "codings-100-fields", whole(PLAIN, *["Content-Encoding: br"] * 100), "decode", status=200,
     body=PLAIN)
for name in ("identity", "", "aws-chunked", "UTF-8", ",,,"):
    good(24, f"no-coding-{name or 'empty'}", coded(PLAIN, name))

# ---- 25 to 28: redirects ----


def moved(to, status="302 Found", *more):
    to = to if isinstance(to, bytes) else to.encode("latin-1")
    return (f"HTTP/1.1 {status}\r\nLocation: ".encode() + to + b"\r\n" +
            b"".join(m.encode() + b"\r\n" for m in more) + b"Content-Length: 0\r\n\r\n")


counter = []


def on_and_on(conn):
    counter.append(1)
    conn.send(moved(f"/moves-on-and-on?{len(counter)}"))
    return "keep"


case(25, "moves-to-itself", moved("/moves-to-itself"), "too_many_redirects", status=302, body=b"",
     redirects=10)
case(25, "moves-on-and-on", on_and_on, "too_many_redirects", status=302, body=b"", redirects=10)
case(25, "moves-a", moved("/moves-b"), "too_many_redirects", status=302, body=b"", redirects=10)
case(25, "moves-b", moved("/moves-a"), "too_many_redirects", status=302, body=b"", redirects=10)
case(25, "moves-301", moved("/moves-301", "301 Moved"), "too_many_redirects", status=301, body=b"",
     redirects=10)
case(25, "moves-308", moved("/moves-308", "308 Moved"), "too_many_redirects", status=308, body=b"",
     redirects=10, keep=True, via="posts", request={"method": "POST", "body": "x"})
for name, to in {
        "10": "http://10.0.0.1/", "link-local": "http://169.254.169.254/latest/meta-data/",
        "v6": "http://[fd00::1]/", "mapped": "http://[::ffff:10.0.0.1]/", "any": "http://0.0.0.0/",
        "scheme-relative": "//10.0.0.1/x", "nat64": "http://[64:ff9b::a00:1]/",
        "backslashes": "http:\\\\10.0.0.1/", "octal": "http://012.0.0.1/",
        "number": "http://167772161/", "hex": "http://0xa000001/"}.items():
    case(26, f"moves-to-private-{name}", moved(to), ("blocked_address", "invalid_url"), status=...,
         body=..., redirects=..., truncated=...)
for name, to in {
        "file": "file:///etc/passwd", "gopher": "gopher://127.0.0.1:70/", "ftp": "ftp://127.0.0.1/",
        "data": "data:text/plain,hi", "javascript": "javascript:alert(1)", "dict": "dict://127.0.0.1/",
        "mailto": "mailto:a@b.test", "no-host": "http://", "no-host-path": "http:///x",
        "port-0": "http://127.0.0.1:0/", "port-99999": "http://127.0.0.1:99999/",
        "port-word": "http://127.0.0.1:http/", "user": "http://user:secret@127.0.0.1/",
        "long": "/" + "x" * 20000, "bad-percent-host": "http://a%00b/",
        "zone": "http://[fe80::1%25lo]/", "bracket": "http://[::1/", "space-host": "http://a b/",
        "unknown": "none-such://x/", "backslash-user": "http://a.test\\@127.0.0.1/"}.items():
    case(26, f"moves-to-{name}", moved(to), ("invalid_url", "blocked_address"), status=..., body=...,
         truncated=..., redirects=...)
case(26, "moves-64-kib", moved("/" + "x" * 65536), "too_large")
good(26, "moves-nowhere", moved(""), status=302, body=b"")
good(26, "moves-nowhere-without-field", head("302 Found", "Content-Length: 0"), status=302, body=b"")
case(26, "moves-crlf-escaped", moved("/crlf%0d%0aX-Evil:%201"), "http_status", status=404, body=...,
     redirects=1)
case(26, "moves-bare-cr", moved(b"/crlf\rX-Evil: 1"), ("invalid_url", "http_status"), status=...,
     body=..., redirects=..., truncated=...)
case(26, "moves-tab", moved(b"/a\tb"), ("invalid_url", "http_status"), status=..., body=...,
     redirects=..., truncated=...)
case(26, "moves-nul", moved(b"/a\0b"))
case(26, "moves-latin-1", moved(b"/caf\xe9"), "http_status", status=404, body=..., redirects=1)
case(26, "moves-utf-8", moved("/caf\u00e9".encode()), "http_status", status=404, body=...,
     redirects=1)
good(26, "moves-blanks-around", moved(b" \t /ok \t "), redirects=1)
good(26, "moves-two-locations", b"HTTP/1.1 302 Found\r\nLocation: /ok\r\nLocation: http://10.0.0.1/"
     b"\r\nContent-Length: 0\r\n\r\n", redirects=1)
good(26, "moves-fragment", moved("/ok#top"), redirects=1)
case(26, "moves-dots", moved("/../../../etc/passwd"), "http_status", status=404, body=..., redirects=1)
good(26, "moves-with-endless-body", steps(head("302 Found", "Location: /ok"), flood(b"e" * 65536)),
     redirects=1, reuse=False)
good(26, "moves-with-bomb", steps(head("302 Found", "Location: /ok", "Content-Encoding: gzip"),
                                  flood(coders.gzip(bytes(1 << 20)))), redirects=1, reuse=False)
case(26, "moves-to-tls-that-is-none", lambda conn: conn.send(
    moved(conn.server.url("/ok", "https"))), ("tls", "timeout"), redirects=1, waits=True,
     request={"connect_timeout_ms": T})


def sees(conn):
    conn.send(whole(conn.request, "Content-Type: text/plain"))


case(27, "echo", sees, "succeeded", status=200, body=...)
SECRETS = {"Authorization": "Bearer s3cret", "Cookie": "a=s3cret", "X-Api-Key": "s3cret"}
good(27, "moves-to-another-origin", lambda conn: conn.send(
    moved(conn.server.url("/echo").replace("127.0.0.1", "localhost"))),
     body=lambda b: b"GET /echo" in b and b"s3cret" not in b, redirects=1,
     request={"headers": SECRETS})
good(27, "moves-within-its-origin", moved("/echo"), redirects=1, request={"headers": SECRETS},
     body=lambda b: b.count(b"s3cret") == 3)
# "posts": where nothing closes connections, since what must not be sent twice is not sent again
for status, method in ((301, b"GET"), (302, b"GET"), (303, b"GET"), (307, b"POST"), (308, b"POST")):
    good(28, f"moves-post-{status}", moved("/echo", f"{status} Moved"), redirects=1,
         keep=True, via="posts", request={"method": "POST", "body": "hello"},
         body=lambda b, method=method: b.startswith(method + b" /echo") and
         (b"ength: 5" in b) == (method == b"POST"))

# ---- 29 to 31: retries, cookies ----

for name, value in {"negative": "-1", "1e9": "1e9", "year-9999": "Fri, 31 Dec 9999 23:59:59 GMT",
                    "garbage": "soon", "huge": "9" * 400, "empty": "", "float": "0.5",
                    "1970": "Thu, 01 Jan 1970 00:00:00 GMT", "emoji": "\xf0\x9f\x98\x80"}.items():
    case(29, f"retry-after-{name}", whole(b"busy", f"Retry-After: {value}", status="503 Busy"),
         "http_status", status=503, body=b"busy", attempts=2, via="retry",
         batch={"retry": {"max_attempts": 2, "min_backoff_ms": 1, "max_backoff_ms": 2,
                          "max_retry_after_ms": 1}})
case(29, "retry-after-150", whole(b"busy", *["Retry-After: 99999999"] * 150, status="503 Busy"),
     "http_status", status=503, body=b"busy", attempts=2, via="retry",
     batch={"retry": {"max_attempts": 2, "min_backoff_ms": 1, "max_backoff_ms": 2,
                      "max_retry_after_ms": 1}})
RETRY = {"retry": {"max_attempts": 4, "min_backoff_ms": 1, "max_backoff_ms": 2}}
case(30, "429-for-ever", whole(b"slow down", status="429 Too Many Requests"), "http_status",
     status=429, body=b"slow down", attempts=4, batch=RETRY)
flaps = []


def flap(conn):
    flaps.append(1)
    conn.send(whole(PLAIN) if len(flaps) % 4 == 0 else whole(b"", status="503 Busy"))
    return "keep"


good(30, "flaps", flap, attempts=4, batch=RETRY)
case(30, "closes-for-ever", b"", attempts=4, batch=RETRY)
good(31, "cookies-150", whole(PLAIN, *[f"Set-Cookie: c{i}=s3cret{i}; Path=/" for i in range(150)]),
     keep=True)
case(31, "cookies-flood", steps(BEGIN, flood(b"Set-Cookie: a=" + b"b" * 200 + b"\r\n")), "too_large")
good(31, "cookies-are-not-sent-back", whole(b"", "Set-Cookie: a=s3cret", "Location: /echo",
                                            status="302 Found"), redirects=1, keep=True,
     body=lambda b: b"s3cret" not in b)

# ---- 32: TLS ----

for kind in ("expired", "wrong-host", "self-signed", "other-ca", "no-chain", "many-names"):
    case(32, f"tls-{kind}", None, "tls", via=f"tls:{kind}")
for kind in ("1.0", "1.1"):
    case(32, f"tls-{kind}", None, "tls", via=f"tls:{kind}")
case(32, "tls-wants-a-certificate", None, ("tls", "protocol"), via="tls:asking")
case(32, "tls-plain-http", lambda conn: (conn.sock.recv(9999), conn.send(
    whole(b"plain", status="400 Bad Request"))), "tls", via="tls:plain")
case(32, "tls-http-at-once", lambda conn: conn.send(whole(PLAIN)), "tls", via="tls:http-at-once")
case(32, "tls-garbage", lambda conn: conn.send(bytes(range(256)) * 99), "tls", via="tls:garbage")
case(32, "tls-garbage-endless", lambda conn: conn.flood(bytes(range(256)) * 99), "tls",
     via="tls:garbage-endless")
case(32, "tls-alert", lambda conn: conn.send(b"\x15\x03\x03\x00\x02\x02\x28"), "tls", via="tls:alert")
case(32, "tls-closes", lambda conn: conn.sock.recv(9999), ("tls", "protocol"), via="tls:closes")
case(32, "tls-resets", lambda conn: (conn.sock.recv(9999), conn.reset()), ("tls", "protocol"),
     via="tls:resets")
case(32, "tls-record-too-long", lambda conn: conn.send(b"\x16\x03\x03\xff\xff" + b"x" * 65535), "tls",
     via="tls:record-too-long")
case(32, "tls-stalls", hang, ("timeout", "tls"), via="tls:stalls", waits=True,
     request={"connect_timeout_ms": T})
case(32, "tls-drips", lambda conn: conn.drip(b"\x16\x03\x03\x40\x00" + b"\x02" * 999), ("timeout", "tls"),
     via="tls:drips", waits=True, request={"connect_timeout_ms": T})
case(32, "http-on-tls-port", None, ("protocol",), via="tls:good", url=("http", "/ok"))
good(32, "tls-exact-length-no-close-notify", whole(PLAIN), via="tls:good")
good(32, "tls-chunked-no-close-notify", CHUNKED + chunk(PLAIN) + LAST, via="tls:good")
case(32, "tls-no-length-no-close-notify", CLOSING + PLAIN, via="tls:good", status=200, body=PLAIN,
     truncated=True)
case(32, "tls-1.0-no-close-notify", head("200 OK", version="HTTP/1.0") + PLAIN, via="tls:good",
     status=200, body=PLAIN, truncated=True)
case(32, "tls12-no-length-no-close-notify", CLOSING + PLAIN, via="tls:1.2", status=200, body=PLAIN,
     truncated=True)
good(32, "tls-no-length-close-notify", steps(CLOSING + PLAIN, lambda conn: conn.sock.unwrap()),
     via="tls:good")
case(32, "tls-short", head("200 OK", "Content-Length: 1000") + b"y" * 600, via="tls:good", status=200,
     body=b"y" * 600, truncated=True)
case(32, "tls-no-answer", b"", via="tls:good")
late(32, "tls-silent", hang, via="tls:good")

# ---- 34 to 36 ----


def answers_once(conn):
    """Says keep-alive; the next request on the connection gets no answer."""
    if len(conn.targets) > 1:
        return "close"
    conn.send(whole(PLAIN))
    return "keep"


good(34, "answers-once", answers_once, keep=True)
good(34, "closes-unannounced", whole(PLAIN))
case(34, "early-413", steps(whole(b"no", "Connection: close", status="413 Too Large"), hang),
     ("http_status", "protocol"), via="deaf413", status=..., body=..., truncated=...,
     request={"method": "POST", "body": "x" * 2_000_000, "timeout_ms": 2000}, memory=16 << 10)


def inert(result, service):
    answer = service.get(result["body_url"]).expect(200)
    assert answer.header("Content-Type") == "application/octet-stream", answer.headers
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert "/" not in answer.header("Content-Disposition"), answer.headers
    assert "evil" not in str(answer.headers).lower()


good(35, "type-html", whole(PLAIN, "Content-Type: text/html; charset=evil<script>"), check=inert)
good(35, "type-cr", whole(PLAIN, "Content-Type: text/plain\rX-Evil: 1"), check=inert)
good(35, "type-svg", whole(PLAIN, "Content-Type: image/svg+xml"), check=inert)
good(35, "type-huge", whole(PLAIN, "Content-Type: evil/" + "x" * 50_000), check=inert)
good(35, "disposition", whole(PLAIN, "Content-Type: text/evil", "Content-Disposition: attachment; "
                              "filename=../../../evil"), check=inert)
good(36, "another-host", whole(PLAIN, "Host: evil.test", "Content-Location: http://evil.test/",
                               "Alt-Svc: h2=\"evil.test:443\"", "Strict-Transport-Security: "
                               "max-age=99999999"), keep=True)
good(36, "huge-date", whole(PLAIN, "Date: " + "9" * 60_000))
good(36, "link-flood", whole(PLAIN, *["Link: <http://evil.test/>; rel=preload"] * 150))
good(36, "refresh", whole(PLAIN, "Refresh: 0; url=http://10.0.0.1/"))

# ---- cut at every byte ----

TEXT = PLAIN[:90]
CUT = {  # name: (head, what follows)
    "length": (head("200 OK", "Content-Length: 90"), TEXT),
    "chunked": (CHUNKED, chunk(TEXT[:40]) + chunk(TEXT[40:]) + LAST),
    "trailers": (CHUNKED, chunk(TEXT) + b"0\r\nX-T: t\r\nX-U: u\r\n\r\n"),
    "close": (CLOSING, TEXT),
    "1.0": (head("200 OK", version="HTTP/1.0"), TEXT),
    "gzip": (head("200 OK", f"Content-Length: {len(coders.gzip(TEXT))}", "Content-Encoding: gzip"),
             coders.gzip(TEXT)),
    "gzip-chunked": (head("200 OK", "Transfer-Encoding: chunked", "Content-Encoding: gzip"),
                     chunk(coders.gzip(TEXT)) + LAST),
    "gzip-close": (head("200 OK", "Content-Encoding: gzip"), coders.gzip(TEXT)),
    "br-close": (head("200 OK", "Content-Encoding: br"), coders.br(TEXT)),
    "zstd-close": (head("200 OK", "Content-Encoding: zstd"), coders.zstd(TEXT)),
    "interim": (head("103 Early Hints", "Link: </a>") + head("200 OK", "Content-Length: 90"), TEXT),
    "404": (head("404 Not Found", "Content-Length: 90"), TEXT),
}


def cut_points(name):
    first, rest = CUT[name]
    return range(len(first + rest) + 1)


def cut_outcome(name, n, tls=False):
    """What the first n bytes, and then the end of the connection, must come to: (code, http_status,
    truncated); None: whatever."""
    first, rest = CUT[name]
    if n < len(first):
        return "protocol", None, False
    status = 404 if name == "404" else 200
    after = n - len(first)
    # libcurl does not wait for the very last line feed after the last chunk
    ended = after == len(rest) or (rest.endswith(LAST[2:]) and after == len(rest) - 1)
    done = {200: "succeeded", 404: "http_status"}[status]
    if name in ("close", "1.0"):  # every length is a whole body, unless TLS says otherwise
        return ("protocol", status, True) if tls else (done, status, False)
    if name.endswith("-close"):  # the coding tells; nothing at all is a whole body, too
        if after == 0:
            return ("protocol", status, True) if tls else (done, status, False)
        if ended:
            return done, status, False
        return "protocol" if tls else "decode", status, None
    return (done, status, False) if ended else ("protocol", status, True)


def cut(conn):
    """/cut/NAME/N, /cut/NAME/N/rst"""
    _, _, name, n, *rst_too = conn.targets[-1].split("?")[0].split("/")
    conn.send(b"".join(CUT[name])[:int(n)])
    if rst_too:
        conn.reset()
    return "close"


if __name__ == "__main__":
    for c in CASES:
        print(f"| {c.row} | {c.name} | {' or '.join(c.codes)} |")
