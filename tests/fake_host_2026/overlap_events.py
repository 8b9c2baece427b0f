"""Events by which two infer threads take turns; see ``turns`` for what a thread does while it waits."""

import dataclasses
import threading
from typing import Any

from .machine import turns


class OverlapEventManager:
    def __init__(self):
        self.lock = threading.Lock()
        self.overlap_pack = OverlapEventPack(*[turns.Event() for _ in range(6)])
        self.overlap_pack.wait_forward_event.set()
        self.overlap_pack.wait_pre_post_handle_event.set()

    def get_overlap_event_pack(self):
        """The pack of the next step, which waits for what the pack of the step before it notifies."""
        with self.lock:
            pack = self.overlap_pack
            self.overlap_pack = OverlapEventPack(
                wait_forward_event=pack.notify_forward_event,
                notify_post_handle_event=pack.wait_post_handle_event,
                wait_pre_post_handle_event=pack.notify_pre_post_handle_event,
                notify_forward_event=turns.Event(),
                wait_post_handle_event=turns.Event(),
                notify_pre_post_handle_event=turns.Event(),
            )
            return pack


@dataclasses.dataclass
class OverlapEventPack:
    wait_forward_event: Any = None
    notify_post_handle_event: Any = None
    wait_pre_post_handle_event: Any = None
    notify_forward_event: Any = None
    wait_post_handle_event: Any = None
    notify_pre_post_handle_event: Any = None

    def wait_to_forward(self):
        self.wait_forward_event.wait()

    def notify_post_handle_and_wait_pre_post_handle(self):
        self.notify_post_handle_event.set()
        self.wait_pre_post_handle_event.wait()

    def notify_forward_and_wait_post_handle(self):
        self.notify_forward_event.set()
        self.wait_post_handle_event.wait()

    def notify_pre_post_handle(self):
        self.notify_pre_post_handle_event.set()

    def _close_overlap(self):
        """One step at a time: methods of this one pack are replaced, on the instance."""

        def pass_():
            pass

        def finished():
            self.notify_post_handle_event.set()
            self.wait_pre_post_handle_event.wait()
            self.notify_forward_event.set()
            self.wait_post_handle_event.wait()
            self.notify_pre_post_handle_event.set()

        self.notify_post_handle_and_wait_pre_post_handle = pass_
        self.notify_forward_and_wait_post_handle = pass_
        self.notify_pre_post_handle = finished
