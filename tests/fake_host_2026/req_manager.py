"""Memory of keys and values, and what the GPU knows of each request."""

import types

from .machine import HIDDEN, args, empty, gpu, on_gpu


class MemoryManager:
    HOLD_TOKEN_MEMINDEX = 0

    def __init__(self, size, dtype, head_num, head_dim, layer_num, always_copy=False, mem_fraction=0.9):
        self.operator = types.SimpleNamespace(copy_kv_to_mem_manager=self._copy_kv_to_mem_manager)
        self.size = size
        self.kv_buffer = (empty(self.size, HIDDEN), empty(self.size, HIDDEN))

    def _copy_kv_to_mem_manager(self, layer_index, mem_index, kv):
        gpu.run("kv")

    def get_att_input_params(self, layer_index):
        return self.kv_buffer

    def free_all(self):
        pass


class ReqSamplingParamsManager:
    """``req_to_next_token_ids``: on the GPU, what each request's next tokens are; a row for each request."""

    def __init__(self, max_request_num):
        self.req_to_next_token_ids = on_gpu(((1,) * (args.mtp_step + 1),) * (max_request_num + 1))

    def init_req_sampling_params(self, req):
        """On the default stream. A prompt of one token goes to decode at once, and its token is found here."""
        table, row, token = self.req_to_next_token_ids, req.req_idx, req.get_last_gen_token()
        gpu.run("copy", lambda rows: (*rows[:row], (token, *rows[row][1:]), *rows[row + 1 :]), table, table)


class ReqManager:
    def __init__(self, max_request_num, max_sequence_length, mem_manager):
        self.HOLD_REQUEST_ID = max_request_num
        self.req_to_token_indexs = empty(max_request_num + 1, max_sequence_length)
        self.req_sampling_params_manager = ReqSamplingParamsManager(max_request_num)
        self.mem_manager = mem_manager
        self._free = list(range(max_request_num))[::-1]

    def alloc(self):
        return self._free.pop()

    def free(self, free_req_indexes, free_token_index):
        self._free.extend(free_req_indexes)

    def free_all(self):
        pass


class ReqManagerForMamba(ReqManager):
    """With a state of each request for each layer of linear attention."""

    def __init__(self, max_request_num, max_sequence_length, mem_manager, linear_config):
        super().__init__(max_request_num, max_sequence_length, mem_manager)
        self._states = {}

    def get_mamba_cache(self, layer_idx_in_all):
        if layer_idx_in_all not in self._states:
            self._states[layer_idx_in_all] = on_gpu((0,) * (self.HOLD_REQUEST_ID + 1))
        return self._states[layer_idx_in_all]
