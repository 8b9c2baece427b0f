"""Command that installs the plugin, or one of its extras, into LightLLM's environment."""

from __future__ import annotations


def install_command(extra: str = "") -> str:
    """Return a shell command that either installs or fails, and never changes the version of an installed package.

    It uses ``pip list``, because ``pip freeze`` has lines for editable and local packages. Pip refuses these as constraints, or
    looks for them in folders that are gone. The plugin itself is excluded, because it could not be updated otherwise.
    """
    wanted = f"'lightllm-otel[{extra}]'" if extra else "lightllm-otel"
    return f"pip list --format=freeze --exclude lightllm-otel > installed.txt && pip install -c installed.txt {wanted}"
