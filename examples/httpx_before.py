"""Eight tasks fetch forty pages over three connections, through httpx, with its own transport."""

import asyncio
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from httpx import AsyncClient, AsyncHTTPTransport, Limits


class Page(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self) -> None:
        body = f"page {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


async def fetch(port: int) -> list[str]:
    async with AsyncClient(transport=AsyncHTTPTransport(limits=Limits(max_connections=3))) as http:
        tasks = asyncio.Semaphore(8)

        async def page(number: int) -> str:
            async with tasks:
                return (await http.get(f"http://127.0.0.1:{port}/{number}")).text

        return await asyncio.gather(*map(page, range(40)))


def main() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever).start()
        pages = asyncio.run(fetch(server.server_port))
        server.shutdown()
    print(f"{len(pages)} pages, from {pages[0]!r} to {pages[-1]!r}")


if __name__ == "__main__":
    main()
