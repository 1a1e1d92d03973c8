#!/usr/bin/python3
"""Usage: aio.py URLFILE TASKS default|none

aiohttp: a task a URL (TASKS 0) or TASKS of them; its connector with the default limit of 100
connections, or with none. Prints one line of JSON like bare.c. Throws the bodies away."""
import asyncio
import json
import sys
import time

import aiohttp


async def main(path, tasks, limit):
    began, cpu = time.monotonic(), time.process_time()
    with open(path, encoding="ascii") as file:
        urls = file.read().split()
    counts = {"ok": 0, "failed": 0}
    connector = aiohttp.TCPConnector() if limit == "default" else aiohttp.TCPConnector(limit=0)

    async with aiohttp.ClientSession(connector=connector,
                                     timeout=aiohttp.ClientTimeout(total=120)) as session:
        async def fetch(url):
            try:
                async with session.get(url) as answer:
                    await answer.read()
                    counts["ok" if answer.status == 200 else "failed"] += 1
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                if counts["failed"] == 0:
                    print(repr(error), file=sys.stderr)
                counts["failed"] += 1

        async def work(left):
            for url in left:
                await fetch(url)

        left = iter(urls)
        if tasks == 0:
            await asyncio.gather(*(fetch(url) for url in urls))
        else:
            await asyncio.gather(*(work(left) for _ in range(tasks)))
    print(json.dumps({"wall": time.monotonic() - began, "cpu": time.process_time() - cpu,
                      **counts}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
