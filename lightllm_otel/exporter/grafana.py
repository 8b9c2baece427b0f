"""Compare and push our dashboards to a Grafana by its HTTP API, using only routes with a uid or a name."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote, urlsplit

from lightllm_otel.installation import install_command

FOLDER_UID, FOLDER_TITLE = "lightllm-otel", "LightLLM"
HERE = Path(__file__).resolve()
# A wheel has them beside the package, a checkout where they are made.
PLACES = (HERE.parents[1] / "dashboards", HERE.parents[2] / "grafana" / "dashboards")
TIMEOUT_SECONDS = 20.0
CREATE, CHANGE, SAME = "create", "change", "same"


class GrafanaProblem(Exception):
    """Grafana cannot be used; the message is one sentence for the user."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One object in Grafana and what must be done to it: ``apply`` does it, and ``diff`` has the lines that change."""

    what: str
    state: str
    diff: tuple[str, ...] = ()
    apply: Optional[Callable[[], Any]] = None


@dataclasses.dataclass(frozen=True)
class Datasource:
    """Data source ``name``. ``url`` is the address of Prometheus as seen by Grafana; None requires that the source exists."""

    name: str
    url: Optional[str] = None


def packaged(places: Sequence[Path] = PLACES) -> list[dict[str, Any]]:
    """Return our dashboards. Raises GrafanaProblem if this installation has none."""
    for place in places:
        found = [json.loads(path.read_text()) for path in sorted(place.glob("*.json"))]
        if found:
            return found
    raise GrafanaProblem("this installation has no dashboards; install the wheel, or work in a checkout")


class Grafana:
    """Client of one Grafana. ``auth`` is a token, or (user, password)."""

    def __init__(self, url: str, auth: str | tuple[str, str]) -> None:
        try:
            from grafana_api.grafana_face import GrafanaFace
        except ImportError:
            raise GrafanaProblem(f"grafana-api is not installed: {install_command('grafana')}") from None
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise GrafanaProblem(f"{url} is not the address of a Grafana; an example is http://127.0.0.1:3000")
        path = parts.path.strip("/")
        self.url = url
        self._face = GrafanaFace(
            auth, host=parts.netloc.rpartition("@")[2], protocol=parts.scheme,
            url_path_prefix=f"{path}/" if path else "", timeout=TIMEOUT_SECONDS,
        )  # fmt: skip

    def changes(self, dashboards: Sequence[dict[str, Any]], datasource: Optional[Datasource] = None) -> list[Change]:
        """Return the changes in the order in which they must be applied. Raises GrafanaProblem."""
        wanted = list(dashboards)
        found = [self._folder()]
        if datasource is not None:
            found.append(self._datasource(datasource))
            wanted = [_with_datasource(each, datasource.name) for each in wanted]
        return found + [self._dashboard(each) for each in wanted]

    def apply(self, change: Change) -> None:
        """Apply one change. Raises GrafanaProblem."""
        if change.apply is not None:
            self._ask(change.apply)

    def version(self) -> str:
        return str(self._ask(lambda: self._face.api.GET("/health")).get("version", "unknown"))

    def _folder(self) -> Change:
        what = f"folder {FOLDER_TITLE}"
        there = self._ask(lambda: self._face.folder.get_folder(FOLDER_UID), missing=None)
        if there is None:
            return Change(what, CREATE, apply=lambda: self._face.folder.create_folder(FOLDER_TITLE, FOLDER_UID))
        return Change(what, SAME)  # a user may rename it

    def _datasource(self, wanted: Datasource) -> Change:
        what = f"data source {wanted.name}"
        name = quote(wanted.name, safe="")
        there = self._ask(lambda: self._face.datasource.get_datasource_by_name(name), missing=None)
        if there is None and wanted.url is None:
            raise GrafanaProblem(f"{self.url} has no data source {wanted.name}; give --prometheus-url to create it")
        if there is None:
            new = {"name": wanted.name, "type": "prometheus", "url": wanted.url, "access": "proxy"}
            return Change(what, CREATE, apply=lambda: self._face.datasource.create_datasource(new))
        if there.get("type") != "prometheus":
            raise GrafanaProblem(f"the data source {wanted.name} is of type {there.get('type')}, not prometheus")
        if wanted.url is None or there.get("url") == wanted.url:
            return Change(what, SAME)
        other = {**there, "url": wanted.url}
        uid = quote(str(there["uid"]), safe="")
        return Change(what, CHANGE, (f"-url: {there.get('url')}", f"+url: {wanted.url}"),
                      lambda: self._face.api.PUT(f"/datasources/uid/{uid}", json=other))  # fmt: skip

    def _dashboard(self, wanted: dict[str, Any]) -> Change:
        what = f"dashboard {wanted['title']}"
        there = self._ask(lambda: self._face.dashboard.get_dashboard(wanted["uid"]), missing=None)
        save = {
            "dashboard": {**wanted, "id": None},
            "folderUid": FOLDER_UID,
            "overwrite": True,
            "message": "lightllm-otel grafana push",
        }
        put = lambda: self._face.dashboard.update_dashboard(save)  # noqa: E731
        if there is None:
            return Change(what, CREATE, apply=put)
        elsewhere = there.get("meta", {}).get("folderUid", FOLDER_UID) != FOLDER_UID
        if contains(there["dashboard"], wanted) and not elsewhere:
            return Change(what, SAME)
        old, new = (
            json.dumps(each, indent=1, sort_keys=True).splitlines()
            for each in (_only(there["dashboard"], wanted), wanted)
        )
        diff = tuple(difflib.unified_diff(old, new, "Grafana's", "ours", lineterm="", n=2))
        return Change(what, CHANGE, diff or (f"-folder: {there['meta']['folderUid']}", f"+folder: {FOLDER_UID}"), put)

    def _ask(self, question: Callable[[], Any], **default: Any) -> Any:
        """Return the answer, or ``missing`` if Grafana has nothing of that name. Raises GrafanaProblem."""
        import requests
        from grafana_api.grafana_api import GrafanaClientError, GrafanaServerError, GrafanaUnauthorizedError

        try:
            return question()
        except GrafanaUnauthorizedError:
            raise GrafanaProblem(f"{self.url} does not know this token or password") from None
        except GrafanaClientError as error:
            if error.status_code == 404 and "missing" in default:
                return default["missing"]
            if error.status_code == 403:
                raise GrafanaProblem(f"{self.url} does not allow this token or user to do that: dashboards need the role "
                                     "Editor, data sources Admin") from None  # fmt: skip
            raise GrafanaProblem(f"{self.url} refused: {error.message}") from None
        except GrafanaServerError as error:
            raise GrafanaProblem(f"{self.url} failed: {error.message}") from None
        except requests.RequestException as error:
            raise GrafanaProblem(f"{self.url} does not answer ({type(error).__name__})") from None
        except ValueError:
            raise GrafanaProblem(f"{self.url} answers, but not like a Grafana") from None


def contains(there: Any, wanted: Any) -> bool:
    """Return True if ``there`` contains all of ``wanted``. Grafana adds defaults of its own."""
    if isinstance(wanted, dict):
        return isinstance(there, dict) and all(contains(there.get(name), each) for name, each in wanted.items())
    if isinstance(wanted, list):
        return isinstance(there, list) and len(there) == len(wanted) and all(map(contains, there, wanted))
    return bool(there == wanted)


def _only(there: Any, wanted: Any) -> Any:
    """Return ``there`` without what Grafana has added to ``wanted``."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return {name: _only(there[name], each) for name, each in wanted.items() if name in there}
    if isinstance(wanted, list) and isinstance(there, list) and len(there) == len(wanted):
        return [_only(*pair) for pair in zip(there, wanted)]
    return there


def _with_datasource(dashboard: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a copy of the dashboard with this data source preselected."""
    copy: dict[str, Any] = json.loads(json.dumps(dashboard))
    for variable in copy["templating"]["list"]:
        if variable["type"] == "datasource":
            variable["current"] = {"selected": True, "text": name, "value": name}
    return copy
