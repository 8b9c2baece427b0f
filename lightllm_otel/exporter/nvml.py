"""NVIDIA's management library, as far as there is one: every question has an answer, or the one that is given for none."""

from __future__ import annotations

from typing import Any, Optional, TypeVar

from lightllm_otel.guard import log

Answer = TypeVar("Answer")


class Nvml:
    """``module``: pynvml, or something that answers like it."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def ask(self, default: Answer, function: str, *arguments: Any) -> Answer:
        """What ``nvml<function>`` returns; ``default`` where driver, GPU or permission have no answer.

        Names among the arguments (``"CLOCK_SM"``) stand for NVML's constants.
        """
        try:
            values = [self._constant(each) if isinstance(each, str) else each for each in arguments]
            answer: Answer = getattr(self._module, f"nvml{function}")(*values)
        except Exception:  # noqa: BLE001 - old driver, old GPU, no permission: all the same to us
            return default
        return answer

    def constant(self, name: str) -> Any:
        """Return NVML's constant; None where this ``pynvml`` does not have it. Several packages bring one, some from 2018."""
        try:
            return self._constant(name)
        except AttributeError:
            return None

    def _constant(self, name: str) -> Any:
        return getattr(self._module, f"NVML_{name}")

    def gpu(self, bus: str) -> Any:
        """The handle of the GPU with this PCI address; None for none."""
        return self.ask(None, "DeviceGetHandleByPciBusId", bus.encode())


def load() -> Optional[Nvml]:
    """None, and one line in the log, where there is no NVML: everything else works without it."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - as above
        log.info("no NVML (%s): link, clocks and throttling of the GPUs stay unknown", error)
        return None
    return Nvml(pynvml)
