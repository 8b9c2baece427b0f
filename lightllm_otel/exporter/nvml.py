"""NVML wrapper. A query that fails returns the caller's default."""

from __future__ import annotations

from typing import Any, Optional, TypeVar

from lightllm_otel.guard import log

Answer = TypeVar("Answer")


class Nvml:
    """NVML. ``module`` is pynvml, or a stand-in for it."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def ask(self, default: Answer, function: str, *arguments: Any) -> Answer:
        """Return the result of ``nvml<function>``, or ``default`` if it fails.

        A string among the arguments is the name of one of NVML's constants, such as ``"CLOCK_SM"``.
        """
        try:
            values = [self._constant(each) if isinstance(each, str) else each for each in arguments]
            answer: Answer = getattr(self._module, f"nvml{function}")(*values)
        except Exception:  # noqa: BLE001 - an old driver, an old GPU, or no permission
            return default
        return answer

    def constant(self, name: str) -> Any:
        """Return a constant of NVML, or None if this ``pynvml`` lacks it. Several packages bring one, some from 2018."""
        try:
            return self._constant(name)
        except AttributeError:
            return None

    def _constant(self, name: str) -> Any:
        return getattr(self._module, f"NVML_{name}")

    def gpu(self, bus: str) -> Any:
        """Return the handle of the GPU with this PCI address, or None without one."""
        return self.ask(None, "DeviceGetHandleByPciBusId", bus.encode())


def load() -> Optional[Nvml]:
    """Return NVML, or None and one log line if it cannot be loaded."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - everything else works without NVML
        log.info("NVML is not available (%s): link, clocks and throttling of the GPUs are not known", error)
        return None
    return Nvml(pynvml)
