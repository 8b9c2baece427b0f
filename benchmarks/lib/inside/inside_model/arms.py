"""The settings of the plugin that are compared with each other, and how a running model process changes from one to another."""

from __future__ import annotations

import enum
import traceback
from pathlib import Path
from typing import Any

from inside_model.plugin_hooks import PluginHooks

NEVER = 2**30
LAG = 12  # steps until an order of live control holds everywhere, and no step of before is in flight


class Arm(enum.IntEnum):
    """``ABSENT``: live control says off, and the hooks that remain then are taken out as well."""

    ABSENT = 0
    OFF = 1
    STEPS = 2
    UNSAMPLED = 3
    DEFAULT = 4
    EVERY_STEP = 5
    EVERY_SECOND = 6


ORDERS = {  # level, and one decode step in so many
    Arm.ABSENT: ("off", 64),
    Arm.OFF: ("off", 64),
    Arm.STEPS: ("steps", 64),
    Arm.UNSAMPLED: ("operators", NEVER),
    Arm.DEFAULT: ("operators", 64),
    Arm.EVERY_STEP: ("operators", 1),
    Arm.EVERY_SECOND: ("operators", 2),
}


class Switch:
    """Bring the plugin of this process into a setting, through the page of live control in ``folder``.

    A stock process has no such page; there every setting is nothing.
    """

    def __init__(self, folder: Path | None, hooks: PluginHooks | None = None) -> None:
        self._folder = folder
        self._page: Any = None
        self.hooks = hooks or PluginHooks()
        self._steps_left = -1

    def to(self, arm: int) -> None:
        """Ask for the setting. It holds after ``LAG`` steps at most."""
        self._steps_left = LAG if arm == Arm.ABSENT else -1
        if arm != Arm.ABSENT:
            self.hooks.put_back()
        page = self._find_page()
        if page is not None:
            from lightllm_otel.records.vocabulary import Level

            level, every = ORDERS[Arm(arm)]
            page.request(Level(level), every)

    def step(self) -> None:
        """Call once for each step: the hooks are taken out when live control has been off for a while."""
        if self._steps_left >= 0:
            if self._steps_left == 0:
                self._take_out()
            self._steps_left -= 1

    def _take_out(self) -> None:
        try:
            self.hooks.take_out()
        except Exception:  # noqa: BLE001 - then this setting is OFF, and the log says that no hook was out
            traceback.print_exc()
            self.hooks.put_back()

    def _find_page(self) -> Any:
        if self._page is None and self._folder is not None:
            from lightllm_otel.records import control

            paths = sorted(self._folder.glob(f"*/{control.NAME}"))
            if paths:
                self._page = control.ControlPage(paths[0])
        return self._page
