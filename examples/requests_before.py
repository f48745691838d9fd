"""Eight threads fetch forty pages over three connections, through requests, with its own pool."""

from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from requests import Session
from requests.adapters import HTTPAdapter


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
        with Session() as session, ThreadPoolExecutor(8) as threads:
            session.mount("http://", HTTPAdapter(pool_maxsize=3, pool_block=True))
            urls = [f"http://127.0.0.1:{server.server_port}/{number}" for number in range(40)]
            pages = list(threads.map(lambda url: session.get(url).text, urls))
        server.shutdown()
    print(f"{len(pages)} pages, from {pages[0]!r} to {pages[-1]!r}")


if __name__ == "__main__":
    main()
