"""Grafana's HTTP API as its documentation has it, as far as we use it, in memory."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from typing import Any


class Stub:
    """``prefix``: the path below which Grafana is served. ``asked``: (method, path) of every request."""

    def __init__(self, token: str = "right", user: str = "admin:secret", prefix: str = "", role: str = "Admin") -> None:
        self.token, self.user, self.role = token, user, role
        self.folders: dict[str, dict] = {}
        self.dashboards: dict[str, dict] = {}
        self.datasources: dict[str, dict] = {}
        self.asked: list[tuple[str, str]] = []
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                path = self.path.removeprefix(prefix)
                stub.asked.append((self.command, path))
                status, content = stub.reply(self.command, path, body, self.headers.get("Authorization", ""))
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *words: Any) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}{prefix}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [each for each in self.asked if each[0] != "GET"]

    def reply(self, method: str, path: str, body: Any, authorization: str) -> tuple[int, Any]:
        basic = "Basic " + base64.b64encode(self.user.encode()).decode()
        if path == "/api/health":
            return 200, {"database": "ok", "version": "13.2.2"}
        if authorization not in (f"Bearer {self.token}", basic):
            return 401, {"message": "Invalid API key"}
        if method != "GET" and (self.role == "Viewer" or (self.role == "Editor" and "/datasources" in path)):
            return 403, {"message": "You'll need additional permissions to perform this action"}
        if path.startswith("/api/folders"):
            return self.folder(method, path.removeprefix("/api/folders").strip("/"), body)
        if path.startswith("/api/datasources"):
            return self.datasource(method, path.removeprefix("/api/datasources").strip("/"), body)
        if path.startswith("/api/dashboards/"):
            return self.dashboard(method, path.removeprefix("/api/dashboards/"), body)
        return 404, {"message": "Not found"}

    def folder(self, method: str, uid: str, body: Any) -> tuple[int, Any]:
        if method == "POST" and not uid:
            self.folders[body["uid"]] = {**body, "version": 1}
            return 200, self.folders[body["uid"]]
        return (200, self.folders[uid]) if uid in self.folders else (404, {"message": "folder not found"})

    def datasource(self, method: str, rest: str, body: Any) -> tuple[int, Any]:
        if method == "POST" and not rest:
            made = {**body, "id": 1, "uid": f"uid-of-{body['name']}", "readOnly": False}
            self.datasources[body["name"]] = made
            return 200, {"datasource": made, "message": "Datasource added", "name": body["name"]}
        if method == "GET" and rest.startswith("name/"):
            found = self.datasources.get(rest.removeprefix("name/").replace("%20", " "))
            return (200, found) if found else (404, {"message": "Data source not found"})
        if method == "PUT" and rest.startswith("uid/"):
            self.datasources[body["name"]] = body
            return 200, {"datasource": body, "message": "Datasource updated"}
        # As Grafana 13 has it: routes with numbers are off.
        return 404, {"message": "Not found"}

    def dashboard(self, method: str, rest: str, body: Any) -> tuple[int, Any]:
        if method == "POST" and rest == "db":
            new = body["dashboard"]
            old = self.dashboards.get(new["uid"])
            version = old["dashboard"]["version"] + 1 if old else 1
            # Grafana numbers what it keeps, and adds its own annotations and defaults.
            kept = {**new, "id": 7, "version": version, "annotations": {**new.get("annotations", {}), "enable": True},
                    "panels": [{**panel, "pluginVersion": "13.2.2"} for panel in new["panels"]]}  # fmt: skip
            self.dashboards[new["uid"]] = {
                "dashboard": kept,
                "meta": {"folderUid": body["folderUid"], "version": version},
            }
            return 200, {"id": 7, "uid": new["uid"], "status": "success", "version": version}
        found = self.dashboards.get(rest.removeprefix("uid/"))
        return (200, found) if rest.startswith("uid/") and found else (404, {"message": "Dashboard not found"})
