"""A stand-in for the hub on this machine: repositories by id and revision, as HF_ENDPOINT names it; of data: datasets/OWNER/NAME.

Routes, headers and error codes are those of huggingface.co: resolve/ with ETags and the commit, redirects to another host for large files,
the list of a commit's files, 401, 403 and 404. It takes what is sent to a model as well: a new repository, the question which files are
large, these by the batch API of Git LFS, and a commit.
"""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

COMMITS = ("a" * 40, "b" * 40)
TOKEN = "hf_a_token_of_somebody_with_access"


@dataclass
class Hub:
    """What the stand-in serves.

    Attributes:
        elsewhere: the host of large files.
        revisions: id -> name of a branch, tag or commit -> commit.
        commits: (id, commit) -> the folder of its files.
        gated: ids that only TOKEN reads.
        private: ids of the repositories that were made, and whether they are private.
        owners: for whom TOKEN may write.
        written: where what is committed lies; None: nothing can be.
        large: content by SHA-256 that was sent before its commit.
        messages: of the commits.
        asked: "METHOD path" of each request.
    """

    endpoint: str = ""
    elsewhere: str = ""
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: dict[tuple[str, str], Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: dict[str, bool] = field(default_factory=dict)
    owners: set[str] = field(default_factory=set)
    written: Path | None = None
    large: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def publish(self, name: str, folder: Path, commit: str = COMMITS[0], *revisions: str) -> None:
        """Serve a folder as a commit, and as what the branch main and other revisions stand for."""
        self.commits[name, commit] = folder
        self.revisions.setdefault(name, {}).update(dict.fromkeys(("main", commit, *revisions), commit))

    def fetched(self) -> set[str]:
        """Names of the files that were fetched whole."""
        return {line.rpartition("/")[2] for line in self.asked if line.startswith("GET ") and "/api/" not in line}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        """A large file."""
        self.hub.asked.append(f"PUT {self.path}")
        content = self._body()
        self.hub.large[hashlib.sha256(content).hexdigest()] = content
        self._send(200, b"", {})

    def do_POST(self) -> None:
        """What is asked or sent with a body."""
        path, body = unquote(self.path).partition("?")[0], self._body()
        self.hub.asked.append(f"POST {self.path}")
        name, _, rest = path.removeprefix("/api/models/").removeprefix("/").partition("/preupload/")
        if "/paths-info/" in path:
            return self._paths_info(path, json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fault(401, "InvalidToken")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if rest:
            modes = {False: "regular", True: "lfs"}
            files = [file["path"] for file in json.loads(body)["files"]]
            sent = [{"path": file, "uploadMode": modes[file.endswith(".safetensors")], "shouldIgnore": False} for file in files]
            return self._json({"files": sent})
        if path.endswith(".git/info/lfs/objects/batch"):
            actions = {"upload": {"href": f"{self.hub.endpoint}/large-file"}}
            return self._json({"transfer": "basic", "objects": [one | {"actions": actions} for one in json.loads(body)["objects"]]})
        name, is_commit, _ = path.removeprefix("/api/models/").partition("/commit/")
        return self._write(name, [json.loads(line) for line in body.splitlines()]) if is_commit else self._fault(404, "EntryNotFound")

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        content = b""
        while size := int(self.rfile.readline(), 16):  # Transfer-Encoding: chunked
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _create(self, asked: dict[str, str]) -> None:
        owner, name = asked["organization"], f"{asked['organization']}/{asked['name']}"
        if owner not in self.hub.owners:
            return self._fault(403, "Forbidden")
        if name in self.hub.revisions:
            return self._fault(409, "RepoExists")
        assert self.hub.written is not None
        folder = self.hub.written / "0"
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        self.hub.publish(name, folder, f"{0:040x}")
        self.hub.private[name] = asked["visibility"] == "private"
        self._json({"url": f"{self.hub.endpoint}/{name}"})

    def _write(self, name: str, lines: list[dict[str, Any]]) -> None:
        """A commit on top of main."""
        assert self.hub.written is not None
        number = len(self.hub.messages) + 1
        folder = self.hub.written / str(number)
        shutil.copytree(self.hub.commits[name, self.hub.revisions[name]["main"]], folder)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
                continue
            place = folder / value["path"]
            if line["key"] == "deletedFile":
                place.unlink()
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            content = base64.b64decode(value["content"]) if line["key"] == "file" else self.hub.large[value["oid"]]
            place.write_bytes(content)
        self.hub.publish(name, folder, f"{number:040x}")
        address = {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{number:040x}", "commitOid": f"{number:040x}"}
        self._json(address | {"success": True})

    def _json(self, record: dict[str, Any]) -> None:
        self._send(200, json.dumps(record).encode(), {"Content-Type": "application/json"})

    def _paths_info(self, path: str, asked: dict[str, Any]) -> None:
        """What is at some paths of a commit."""
        name, _, revision = path.removeprefix("/api/").partition("/paths-info/")
        if (commit := self._commit(name, self.hub.revisions.get(name, {}), revision)) is not None:
            paths = [(path, self.hub.commits[name, commit] / path) for path in asked["paths"]]
            entries = [
                {"type": "file" if place.is_file() else "directory", "path": path, "size": place.stat().st_size, "oid": "0" * 40}
                for path, place in paths
                if place.exists()
            ]
            self._send(200, json.dumps(entries).encode(), {})

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(self.path).partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if path.startswith("/large/"):
            _, _, number, name = path.split("/", 3)
            folder = list(self.hub.commits.values())[int(number)]
            return self._send(200, (folder / name).read_bytes(), {})
        if path.startswith("/api/"):
            name, _, revision = path.removeprefix("/api/").removeprefix("models/").partition("/revision/")
            name, is_tree, tree = name.partition("/tree/")
            return self._tree(name, tree) if is_tree else self._list(name, revision or "main")
        name, found, rest = path[1:].partition("/resolve/")
        if not found:
            return self._fault(404, "RepoNotFound")
        commit = self._commit(name, revisions := self.hub.revisions.get(name, {}), rest)
        if commit is None:
            return None
        revision = next(one for one in sorted(revisions, key=len, reverse=True) if rest.startswith(f"{one}/"))
        self._file(name, commit, rest.removeprefix(f"{revision}/"))
        return None

    def _commit(self, name: str, revisions: dict[str, str], rest: str) -> str | None:
        """The commit that is asked for; None: refused."""
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not revisions:
            self._fault(404 if is_known else 401, "RepoNotFound")
        elif name in self.hub.gated and not is_known:
            self._fault(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        elif (found := next((commit for one, commit in revisions.items() if f"{rest}/".startswith(f"{one}/")), None)) is None:
            self._fault(404, "RevisionNotFound")
        else:
            return found
        return None

    def _list(self, name: str, revision: str) -> None:
        if (commit := self._commit(name, self.hub.revisions.get(name, {}), revision)) is not None:
            folder = self.hub.commits[name, commit]
            files = [{"rfilename": path.relative_to(folder).as_posix()} for path in sorted(folder.rglob("*")) if path.is_file()]
            found = {"id": name, "modelId": name, "sha": commit, "private": self.hub.private.get(name, False), "siblings": files}
            self._send(200, json.dumps(found).encode(), {})

    def _tree(self, name: str, place: str) -> None:
        """The files of a folder of a commit, and of those below it where that is asked."""
        if (commit := self._commit(name, self.hub.revisions.get(name, {}), place)) is not None:
            root = self.hub.commits[name, commit]
            folder = root / place.partition("/")[2]
            if not folder.is_dir():
                return self._fault(404, "EntryNotFound", {"X-Repo-Commit": commit})
            found = sorted(folder.rglob("*") if "recursive=true" in self.path.lower() else folder.iterdir())
            entries = [
                {"type": "file" if path.is_file() else "directory", "path": path.relative_to(root).as_posix(), "size": path.stat().st_size}
                | {"oid": hashlib.sha1(path.read_bytes() if path.is_file() else b"").hexdigest()}
                for path in found
            ]
            self._send(200, json.dumps(entries).encode(), {})
        return None

    def _file(self, name: str, commit: str, file: str) -> None:
        path = self.hub.commits[name, commit] / file
        if not path.is_file():
            return self._fault(404, "EntryNotFound", {"X-Repo-Commit": commit})
        content = path.read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        if path.suffix not in (".safetensors", ".bin"):
            return self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{tag[:40]}"'})
        place = list(self.hub.commits).index((name, commit))
        large = {"Location": f"{self.hub.elsewhere}/large/{place}/{file}", "X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{tag}"'}
        return self._send(302, b"", {"X-Repo-Commit": commit} | large)

    def _fault(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code} | (headers or {}))

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Hub]:
    """A stand-in that answers until the end."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    hub.elsewhere = f"http://localhost:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def go_online(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """What HF_ENDPOINT, HF_HUB_CACHE and HF_ASSETS_CACHE would do to a process of its own."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(cache / "assets"))
