"""The health monitor: the server's processes that it looks after."""

from .machine import processes


def get_all_cared_pids():
    all_process_ids = [processes[0]]
    for child in processes[1:]:
        all_process_ids.append(child)
    return all_process_ids


def serve():
    return get_all_cared_pids()
