"""Command that installs the plugin, or one of its extras, into LightLLM's environment."""

from __future__ import annotations


def install_command(extra: str = "") -> str:
    """Return a shell command that either installs or fails, and never changes the version of an installed package.

    It uses ``pip list`` instead of ``pip freeze``, whose lines for editable and local packages pip refuses as constraints, or
    looks up in folders that are gone. It excludes the plugin itself, which could not be updated otherwise.
    """
    wanted = f"'lightllm-otel[{extra}]'" if extra else "lightllm-otel"
    return f"pip list --format=freeze --exclude lightllm-otel > installed.txt && pip install -c installed.txt {wanted}"
