"""Starts lightllm-otel in a Python process, if LIGHTLLM_OTEL asks for it. Imports nothing else until then.

Installed at the top of site-packages beside two files that call it: ``lightllm_otel_boot.pth`` (Python up to 3.17)
and ``lightllm_otel_boot.start`` (PEP 829, Python 3.15 and later, which import this module in any case).
"""

_started = False


def start() -> None:
    """Never raises and works once: site may process a folder twice, and the launcher may have been first."""
    global _started
    import os

    if _started or os.environ.get("LIGHTLLM_OTEL", "").strip().lower() in ("", "0", "false", "off"):
        return
    _started = True
    try:
        from lightllm_otel.activate.bootstrap import activate

        activate()
    except Exception as error:  # the host's interpreter must come up, whatever is wrong with us
        import sys

        print(f"lightllm-otel could not start and stays off: {error!r}", file=sys.stderr)
