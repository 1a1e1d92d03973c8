"""An origin for very many requests at once, on every address of 127.0.0.0/8.

    /N?…        N bytes
    /hold/N?…   N bytes, of which the last ones come only when they are released
    /silent?…   no answer

Commands on stdin, an answer each on stdout: "held" (how many wait for their last bytes), "release"
(these, and whoever comes later).
"""
import asyncio
import os
import resource
import socket
import sys

PIECE = (b"0123456789abcdef" * 4096)  # every body is this, again and again
LAST = 1000


class Origin:
    def __init__(self):
        self.held = 0
        self.released = asyncio.Event()

    async def send(self, writer, start, end):
        while start < end:
            at = start % len(PIECE)
            n = min(len(PIECE) - at, end - start)
            writer.write(PIECE[at:at + n])
            await writer.drain()
            start += n

    async def one(self, reader, writer, path):
        words = path.split("?")[0].strip("/").split("/")
        if words[0] == "silent":
            await reader.read()  # until the client has gone
            raise ConnectionError
        size = int(words[-1])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
                     % size)
        if words[0] == "hold" and not self.released.is_set():
            await self.send(writer, 0, size - LAST)
            self.held += 1
            await self.released.wait()
            await self.send(writer, size - LAST, size)
        else:
            await self.send(writer, 0, size)

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self.one(reader, writer, head.split(b" ", 2)[1].decode())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main(self):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.bind(("0.0.0.0", 0))
        await asyncio.start_server(self.serve, sock=sock, backlog=4096, limit=16384)
        print(sock.getsockname()[1], flush=True)
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        while line := await commands.readline():
            if line == b"release\n":
                self.released.set()
            print(self.held, flush=True)
        os._exit(0)  # however many connections there are


if __name__ == "__main__":
    asyncio.run(Origin().main())
