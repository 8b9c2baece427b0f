"""Boot module: starts lightllm-otel in a Python process that imports LightLLM, if LIGHTLLM_OTEL asks for it.

It imports nothing of the package before that, because every Python process of the environment runs it, including pip and shell
tools. It is installed at the top of site-packages beside two files that call it: ``lightllm_otel_boot.pth`` (Python up to
3.17) and ``lightllm_otel_boot.start`` (PEP 829, Python 3.15 and later, which import this module in any case).
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HOST = "lightllm"
# A copy of lightllm_otel.settings.OFF_WORDS, because the package must not be imported here. The full rule is settings.switch.
OFF_WORDS = ("", "0", "false", "off", "no", "none", "null", "disabled")
_started = False


def start() -> None:
    """Watch for the first import of LightLLM. Later calls do nothing, because site and the launcher may both call it."""
    global _started
    import os

    if _started or os.environ.get("LIGHTLLM_OTEL", "").strip().strip("\"'").strip().lower() in OFF_WORDS:
        return
    _started = True
    if HOST in sys.modules:
        activate()
    else:
        sys.meta_path.insert(0, _Finder())


def activate() -> None:
    """Register the plugin's import hooks. Never raises, because the host's interpreter must start in any case."""
    try:
        from lightllm_otel.inject.bootstrap import activate

        activate()
    except Exception as error:
        print(f"lightllm-otel could not start and stays off: {error!r}", file=sys.stderr)


class _Finder:
    """Import finder: finds LightLLM's package through the other finders, and starts the plugin right before it runs."""

    def __init__(self) -> None:
        self._done = False

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name != HOST or self._done:
            return None
        for finder in list(sys.meta_path):
            search: Any = None if finder is self else getattr(finder, "find_spec", None)
            spec = search and search(name, path, target)
            if spec is None:
                continue
            if hasattr(spec.loader, "exec_module"):
                spec.loader = _Loader(spec.loader, self._start)
            else:  # a namespace package, or a loader that does not show when the module runs
                self._start()
            return spec
        return None

    def _start(self) -> None:
        if not self._done:
            self._done = True
            activate()


class _Loader:
    """Loader with a call before the module runs. The call cannot be in find_spec, where Python holds the import lock."""

    def __init__(self, loader: "Any", before: "Any") -> None:
        self._loader = loader
        self._before = before

    def __getattr__(self, name: str) -> "Any":
        return getattr(object.__getattribute__(self, "_loader"), name)

    def exec_module(self, module: "Any") -> None:
        try:  # noqa: SIM105 - contextlib is an import
            module.__loader__ = module.__spec__.loader = self._loader
        except AttributeError:  # a module may refuse it, and works with this loader as well
            pass
        self._before()
        self._loader.exec_module(module)
