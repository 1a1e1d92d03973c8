"""The toxic origin: a server on raw sockets that breaks the rules, one way for each path.

A thread a connection; the connections are few. Every answer is bounded by the client closing, or
by BYTES_MAX.
"""
import gzip
import socket
import struct
import threading
import urllib.parse
import zlib

from listener import Listener
from toxic_origin import BYTES_MAX, PLAIN, head, whole


class Toxic(Listener):
    """`hits` counts requests per path."""

    def __init__(self, host="127.0.0.1"):
        self.hits = {}
        self.requests = []
        self.listen(host)

    def url(self, path):
        return f"http://{self.host}:{self.port}{path}"

    def _serve(self, conn):
        conn.settimeout(30)
        try:
            data = b""
            while not self.stopping.is_set():
                while b"\r\n\r\n" not in data:
                    more = conn.recv(65536)
                    if not more:
                        return
                    data += more
                request, data = data.split(b"\r\n\r\n", 1)
                target = request.split(b" ", 2)[1].decode("latin-1")
                url = urllib.parse.urlsplit(target)
                with self.lock:
                    self.hits[target] = self.hits.get(target, 0) + 1
                    self.requests.append(request)
                query = dict(urllib.parse.parse_qsl(url.query))
                name, _, arg = url.path.lstrip("/").partition("/")
                fn = getattr(self, "do_" + name.replace("-", "_"), None)
                if fn is None:
                    conn.sendall(whole(b"no such behaviour", status="404 Not Found"))
                elif fn(conn, arg, query) != "keep":
                    return
        except (OSError, ValueError):
            pass  # the client went away, which is often the point
        finally:
            conn.close()

    def _flood(self, conn, piece):
        sent = 0
        while sent < BYTES_MAX and not self.stopping.is_set():
            conn.sendall(piece)
            sent += len(piece)

    def _wait_gone(self, conn):
        """Until the client closes."""
        conn.settimeout(120)
        while not self.stopping.is_set() and conn.recv(4096):
            pass

    @staticmethod
    def _reset(conn):
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    # ---- behaviours ----

    def do_ok(self, conn, arg, query):
        conn.sendall(whole(PLAIN, "Content-Type: text/plain"))
        return "keep"

    def do_binary(self, conn, arg, query):
        conn.sendall(whole(bytes(range(256)), "Content-Type: application/octet-stream"))
        return "keep"

    def do_close(self, conn, arg, query):
        pass

    def do_rst(self, conn, arg, query):
        self._reset(conn)

    def do_rst_head(self, conn, arg, query):
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
        self._reset(conn)

    def do_rst_body(self, conn, arg, query):
        conn.sendall(head("200 OK", "Content-Length: 1000") + b"x" * 300)
        # A reset overtakes data that was not read yet, and nothing tells when it has been.
        self.stopping.wait(0.3)
        self._reset(conn)

    def do_short(self, conn, arg, query):
        conn.sendall(head("200 OK", "Content-Length: 1000") + b"y" * 600)

    def do_cut_head(self, conn, arg, query):
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Le")

    def do_interim_only(self, conn, arg, query):
        conn.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")

    def do_http2_line(self, conn, arg, query):
        conn.sendall(b"HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def do_cut_redirect(self, conn, arg, query):
        conn.sendall(head("302 Found", "Location: /ok", "Content-Length: 1000") + b"y" * 600)

    def do_folded(self, conn, arg, query):
        conn.sendall(head("200 OK", "X-Folded: one", "  two", "Bad Name: x", "Content-Length: 2") +
                     b"ok")

    def do_long(self, conn, arg, query):
        conn.sendall(whole(b"declared") + b"and more than that")

    def do_poison(self, conn, arg, query):
        """An answer that nobody asked for follows the right one; the connection stays open."""
        conn.sendall(whole(b"right") + whole(b"poison"))
        return "keep"

    def do_huge_length(self, conn, arg, query):
        conn.sendall(head("200 OK", "Content-Length: 10737418240") + b"z" * 1000)
        self._wait_gone(conn)

    def do_two_lengths(self, conn, arg, query):
        conn.sendall(head("200 OK", "Content-Length: 3", "Content-Length: 5") + b"abcde")

    def do_negative_length(self, conn, arg, query):
        conn.sendall(head("200 OK", "Content-Length: -5") + b"abcde")

    def do_bad_chunk(self, conn, arg, query):
        conn.sendall(head("200 OK", "Transfer-Encoding: chunked") + b"5\r\nabcde\r\nzz\r\nabc\r\n")

    def do_chunk_overflow(self, conn, arg, query):
        conn.sendall(head("200 OK", "Transfer-Encoding: chunked") +
                     b"fffffffffffffffff1\r\nabc\r\n0\r\n\r\n")

    def do_no_last_chunk(self, conn, arg, query):
        conn.sendall(head("200 OK", "Transfer-Encoding: chunked") + b"5\r\nabcde\r\n")

    def do_chunked(self, conn, arg, query):
        conn.sendall(head("200 OK", "Transfer-Encoding: chunked") +
                     b"5;ext=1\r\nabcde\r\n3\r\nfgh\r\n0\r\nX-Trailer: t\r\n\r\n")
        return "keep"

    def do_until_close(self, conn, arg, query):
        conn.sendall(head("200 OK", "Connection: close") + PLAIN)

    def do_endless(self, conn, arg, query):
        conn.sendall(head("200 OK", "Connection: close"))
        self._flood(conn, b"e" * 65536)

    def do_endless_chunked(self, conn, arg, query):
        conn.sendall(head("200 OK", "Transfer-Encoding: chunked"))
        self._flood(conn, b"10000\r\n" + b"e" * 65536 + b"\r\n")

    def do_endless_headers(self, conn, arg, query):
        conn.sendall(b"HTTP/1.1 200 OK\r\n")
        self._flood(conn, b"X-Flood: " + b"h" * 1000 + b"\r\n")

    def do_one_big_header(self, conn, arg, query):
        conn.sendall(b"HTTP/1.1 200 OK\r\nX-Big: ")
        self._flood(conn, b"h" * 65536)

    def do_1xx_flood(self, conn, arg, query):
        self._flood(conn, b"HTTP/1.1 102 Processing\r\nX-Hint: 1\r\n\r\n" * 50)

    def do_1xx_then_ok(self, conn, arg, query):
        conn.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + whole(PLAIN))
        return "keep"

    def do_http09(self, conn, arg, query):
        conn.sendall(b"<html>no status line at all</html>")

    def do_bad_status(self, conn, arg, query):
        conn.sendall(b"HTTP/1.1 twohundred OK\r\nContent-Length: 0\r\n\r\n")

    def do_nul_header(self, conn, arg, query):
        conn.sendall(b"HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 2\r\n\r\nok")

    def do_no_content_body(self, conn, arg, query):
        conn.sendall(head("204 No Content", "Content-Length: 5") + b"abcde")

    def do_silent(self, conn, arg, query):
        self._wait_gone(conn)

    def do_drip(self, conn, arg, query):
        conn.sendall(head("200 OK", "Content-Length: 100000"))
        while not self.stopping.wait(0.1):
            conn.sendall(b"d")

    def do_drip_head(self, conn, arg, query):
        conn.sendall(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        while not self.stopping.wait(0.1):
            conn.sendall(b"d")

    def do_odd_headers(self, conn, arg, query):
        conn.sendall(b"HTTP/1.1 200 OK\r\nX-Latin: caf\xe9\r\nX-Utf8: caf\xc3\xa9\r\nX-Empty:\r\n"
                     b"X-Same: one\r\nx-same: two\r\nX-SAME: three\r\nX-Quote: \"\\<>\r\n"
                     b"Content-Type: text/html\r\nContent-Length: 2\r\n\r\nok")
        return "keep"

    def do_encoded(self, conn, arg, query):
        """/encoded/KIND; broken-gzip has a block of a type that does not exist."""
        raw = zlib.compressobj(wbits=-15)
        packed = gzip.compress(PLAIN)
        label, data = {
            "gzip": ("gzip", packed),
            "deflate": ("deflate", zlib.compress(PLAIN)),
            "raw-deflate": ("deflate", raw.compress(PLAIN) + raw.flush()),
            "identity": ("identity", PLAIN),
            "none-such": ("none-such", PLAIN),
            "broken-gzip": ("gzip", packed[:10] + b"\x07" * 40),
            "bad-crc": ("gzip", packed[:-8] + b"\0\0\0\0" + packed[-4:]),
            "cut-gzip": ("gzip", packed[:len(packed) // 2]),
            "wrong-label": ("gzip", PLAIN),
        }[arg]
        conn.sendall(whole(data, f"Content-Encoding: {label}", "Content-Type: text/plain"))
        return "keep"

    def do_gzip_bomb(self, conn, arg, query):
        """64 MiB of zeros in 64 KiB, again and again in one stream."""
        pack = zlib.compressobj(9, wbits=31)
        data = b""
        zeros = bytes(1 << 20)
        for _ in range(64):
            data += pack.compress(zeros)
        data += pack.flush()
        conn.sendall(whole(data, "Content-Encoding: gzip"))

    def do_to(self, conn, arg, query):
        conn.sendall(whole(b"", "Location: " + query["url"],
                           status=query.get("status", "302") + " Moved"))
        return "keep"

    def do_to_raw(self, conn, arg, query):
        """/to-raw/HEX: the Location as these bytes."""
        conn.sendall(b"HTTP/1.1 302 Moved\r\nLocation: " + bytes.fromhex(arg) +
                     b"\r\nContent-Length: 0\r\n\r\n")
        return "keep"

    def do_to_long(self, conn, arg, query):
        conn.sendall(whole(b"", "Location: /" + "x" * 20000, status="302 Found"))
        return "keep"

    def do_no_location(self, conn, arg, query):
        conn.sendall(whole(b"where to?", status="302 Found"))
        return "keep"

    def do_drop_idle(self, conn, arg, query):
        """Announces keep-alive and closes all the same after the answer."""
        conn.sendall(whole(PLAIN))


class Dns:
    """A name server, so that no test asks one outside. Whoever is not in `names` does not exist;
    an empty list is a name without addresses, "silent" never answers, "broken" fails (SERVFAIL).
    """

    names = {
        "good.test": ["127.0.0.1"], "two.test": ["127.0.0.2"], "private.test": ["10.0.0.1"],
        "metadata.test": ["169.254.169.254"], "loop6.test": ["::1"], "mapped.test":
        ["::ffff:127.0.0.1"], "mixed.test": ["10.0.0.1", "127.0.0.2", "192.168.0.1"],
        "dead-first.test": ["127.0.0.77", "127.0.0.1"], "empty.test": [], "silent.test": "silent",
        "broken.test": "broken",
    }

    def __init__(self):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.asked = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                data, peer = self.sock.recvfrom(4096)
                answer = self._answer(data)
                if answer:
                    self.sock.sendto(answer, peer)
            except (IndexError, struct.error):
                continue
            except OSError:
                return

    def _answer(self, data):
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1:at + 1 + data[at]].decode("latin-1"))
            at += 1 + data[at]
        question = data[12:at + 5]
        kind = struct.unpack(">H", data[at + 1:at + 3])[0]
        name = ".".join(labels).lower()
        self.asked.append(name)
        known = self.names.get(name)
        if known == "silent":
            return None
        rcode = 3 if known is None else 2 if known == "broken" else 0
        records = b""
        count = 0
        for text in known if rcode == 0 else ():
            family = socket.AF_INET6 if ":" in text else socket.AF_INET
            if kind == (28 if family == socket.AF_INET6 else 1):
                address = socket.inet_pton(family, text)
                records += b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(address)) + address
                count += 1
        return data[:2] + struct.pack(">HHHHH", 0x8180 | rcode, 1, count, 0, 0) + question + records

    def stop(self):
        self.sock.close()


class Canary:
    """A listener that nobody may connect to."""

    def __init__(self, host="127.0.0.1", family=socket.AF_INET):
        self.sock = socket.socket(family)
        self.sock.bind((host, 0))
        self.sock.listen(16)
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]

    def connections(self):
        """How many connections came in since the last call."""
        n = 0
        while True:
            try:
                conn, _ = self.sock.accept()
            except BlockingIOError:
                return n
            conn.close()
            n += 1

    def stop(self):
        self.sock.close()


class Backlogged:
    """A listener whose queue is full, so that a further connect() gets no answer (Linux drops the
    SYN): a connect that hangs, without leaving the machine."""

    def __init__(self, host="127.0.0.1"):
        self.sock = socket.socket()
        self.sock.bind((host, 0))
        self.sock.listen(0)
        self.port = self.sock.getsockname()[1]
        self.fill = []
        for _ in range(8):
            s = socket.socket()
            s.setblocking(False)
            try:
                s.connect((host, self.port))
            except BlockingIOError:
                pass
            self.fill.append(s)

    def stop(self):
        for s in self.fill:
            s.close()
        self.sock.close()
