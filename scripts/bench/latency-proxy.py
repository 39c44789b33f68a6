#!/usr/bin/env python3
"""latency-proxy.py LISTEN_PORT TARGET_PORT DELAY_MS LOG: a TCP proxy on loopback for the benches.

Every answer comes DELAY_MS later than the server gave it, as over a longer line: each of its pieces waits by itself, so
bandwidth stays. On SIGUSR1 the counts since the last one (requests, bytes up, bytes down) are appended to LOG."""
import asyncio
import re
import signal
import sys

listen, target, delay, log = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000, sys.argv[4]
counts = [0, 0, 0]
REQUEST = re.compile(rb"(?:^|\n)(?:GET|PUT|POST|HEAD|DELETE) /\S* HTTP/1\.1\r\n")


async def upward(reader, writer):
    while data := await reader.read(1 << 16):
        counts[0] += len(REQUEST.findall(data))
        counts[1] += len(data)
        writer.write(data)
        await writer.drain()
    writer.close()


async def downward(reader, writer):
    loop = asyncio.get_running_loop()
    queue = asyncio.Queue(4096)

    async def late():
        while item := await queue.get():
            due, data = item
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            writer.write(data)
            await writer.drain()
        writer.close()

    task = asyncio.create_task(late())
    while data := await reader.read(1 << 16):
        counts[2] += len(data)
        await queue.put((loop.time() + delay, data))
    await queue.put(None)
    await task


async def connection(reader, writer):
    try:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(upward(reader, up_writer), downward(up_reader, writer))
    except (ConnectionError, asyncio.IncompleteReadError):
        writer.close()


def report():
    with open(log, "a", encoding="ascii") as out:
        print(*counts, file=out)
    counts[:] = [0, 0, 0]


async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, report)
    server = await asyncio.start_server(connection, "127.0.0.1", listen)
    async with server:
        await server.serve_forever()


asyncio.run(main())
