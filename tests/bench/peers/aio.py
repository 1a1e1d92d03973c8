#!/usr/bin/python3
"""aiohttp, as people use it: gather over one session. aio.py LIMIT FILE (limit 0: none); prints
JSON."""
import asyncio
import json
import resource
import sys
import time

import aiohttp


async def main():
    limit, path = int(sys.argv[1]), sys.argv[2]
    with open(path, encoding="utf-8") as file:
        urls = file.read().split()
    failed = 0

    async def get(session, url):
        nonlocal failed
        try:
            async with session.get(url) as response:
                await response.read()
                failed += response.status != 200
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            failed += 1

    begin = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=limit)) as session:
        await asyncio.gather(*(get(session, url) for url in urls))
    wall = time.monotonic() - begin
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"wall": wall, "cpu": used.ru_utime + used.ru_stime, "done": len(urls),
                      "failed": failed}))

asyncio.run(main())
