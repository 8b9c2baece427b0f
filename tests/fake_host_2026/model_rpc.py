"""The model process's own server: builds the backend, on a thread of its connection."""

from .chunked_prefill import ChunkedPrefillBackend
from .dp_backend import DPChunkedPrefillBackend


class ModelRpcServer:
    def __init__(self, args, rank, rank_in_node, node_world_size, info_queue):
        self.args = args
        self.rank = rank
        self.backend = None

    def exposed_init_model(self, kvargs):
        self.backend = DPChunkedPrefillBackend() if self.args.dp > 1 else ChunkedPrefillBackend()
        self.backend.init_model(kvargs)

    def exposed_get_max_total_token_num(self):
        return self.backend.model.mem_manager.size
