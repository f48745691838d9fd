"""Eight threads fetch forty pages over three connections, with urllib3's own pool."""

from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from urllib3 import PoolManager


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


def main() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever).start()
        with PoolManager(maxsize=3, block=True) as http, ThreadPoolExecutor(8) as threads:
            urls = [f"http://127.0.0.1:{server.server_port}/{number}" for number in range(40)]
            pages = list(threads.map(lambda url: http.request("GET", url).data.decode(), urls))
        server.shutdown()
    print(f"{len(pages)} pages, from {pages[0]!r} to {pages[-1]!r}")


if __name__ == "__main__":
    main()
