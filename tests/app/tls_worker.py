"""A worker that speaks HTTPS, or plain HTTP where its certificate is "-".

    tls_worker.py ADDRESS PORT CERTIFICATE KEY

Answers each GET with the directory that it was started in, after as many seconds as the path says: /slow/3.
"""

import http.server
import os
import ssl
import sys
import time

ADDRESS, PORT, CERTIFICATE, KEY = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/slow/"):
            time.sleep(float(self.path.removeprefix("/slow/")))
        body = (self.headers["Host"] if self.path == "/host" else "v1 " + os.getcwd()).encode()
        self.send_response(200)
        self.send_header("X-Version", "v1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass


server = Server((ADDRESS, PORT), Handler)
if CERTIFICATE != "-":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("listening", ADDRESS, PORT, flush=True)
server.serve_forever()
