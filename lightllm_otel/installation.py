"""The command that brings the plugin, or one of its extras, into LightLLM's environment."""

from __future__ import annotations


def install_command(extra: str = "") -> str:
    """Return a shell command that installs, or fails, without changing the version of anything that is there.

    ``pip list`` and not ``pip freeze``: that one has lines for editable and local packages which pip refuses as constraints,
    or for which it looks in folders that are gone. The plugin's own line would keep it from being updated.
    """
    wanted = f"'lightllm-otel[{extra}]'" if extra else "lightllm-otel"
    return f"pip list --format=freeze --exclude lightllm-otel > installed.txt && pip install -c installed.txt {wanted}"
