"""Requests in a model process, and the one stream on which all forwards run."""

import collections
import types

from .machine import Tensor, args, cuda, no_grad, tensor

VOCABULARY = 997


class ShmReq:
    """What the router and a model process share of a request. ``out``: its tokens, as its client gets them."""

    def __init__(self, request_id, prompt, max_new_tokens):
        self.request_id = self.group_req_id = request_id
        self.input_len, self.max_new_tokens = len(prompt), max_new_tokens
        room = [0] * (max_new_tokens + 64)  # also of tokens that are computed after the last one
        self.shm_prompt_ids = types.SimpleNamespace(arr=[*prompt, *room])
        self.shm_cur_kv_len = self.shm_cur_output_len = self.candetoken_out_len = self.mtp_accepted_token_num = 0
        self.finish_status = None

    @property
    def out(self):
        return self.shm_prompt_ids.arr[self.input_len : self.input_len + self.candetoken_out_len]


class FinishStatus:
    def __init__(self, init_state=0):
        self.status = init_state

    def is_finished(self):
        return self.status != 0


class InferReq:
    def __init__(self, req_id, req_idx, shm_index, multimodal_params, vocab_size=-1, init_prefix_cache=True):
        self.args = args
        self.req_id = req_id
        self.req_idx = req_idx
        self.shm_index = shm_index
        self.multimodal_params = multimodal_params
        self.wait_pause = self.paused = self.infer_aborted = self.filter_mark = False
        self.mtp_step = args.mtp_step
        self._init_all_state()

    def _init_all_state(self):
        self.shm_req = g_infer_context.shm_req_manager[self.shm_index]
        self.cur_kv_len = self.cur_output_len = 0
        g_infer_context.req_manager.req_sampling_params_manager.init_req_sampling_params(self)
        self.finish_status = FinishStatus()

    def is_slave_req(self):
        return False

    def get_output_len(self):
        return self.cur_output_len

    def get_cur_total_len(self):
        return self.shm_req.input_len + self.cur_output_len

    def get_input_token_ids(self):
        return self.shm_req.shm_prompt_ids.arr[0 : self.get_cur_total_len()]

    def get_chuncked_input_token_ids(self):
        return self.shm_req.shm_prompt_ids.arr[0 : self.get_chuncked_input_token_len()]

    def get_chuncked_input_token_len(self):
        return min(self.get_cur_total_len(), self.cur_kv_len + self.args.chunked_prefill_size)

    def set_next_gen_token_id(self, next_token_id, logprob, output_len, rank=-1):
        self.shm_req.shm_prompt_ids.arr[self.shm_req.input_len + output_len - 1] = next_token_id

    def get_last_gen_token(self):
        return self.shm_req.shm_prompt_ids.arr[self.shm_req.input_len + self.cur_output_len - 1]

    def update_mtp_accepted_token_num(self, accept_token_num):
        self.shm_req.mtp_accepted_token_num += accept_token_num

    def update_finish_status(self, eos_ids, output_len):
        if output_len >= self.shm_req.max_new_tokens:
            self.finish_status.status = 2

    def prefill_need_token_num(self, is_chuncked_prefill):
        token_ids = self.get_chuncked_input_token_ids() if is_chuncked_prefill else self.get_input_token_ids()
        return len(token_ids) - self.cur_kv_len

    def decode_need_token_num(self):
        return 1 + self.mtp_step


class InferReqUpdatePack:
    """What of a step can be written only when its tokens are on the CPU."""

    def __init__(self, req_obj, output_len):
        self.req_obj = req_obj
        self.output_len = output_len

    def handle(
        self,
        next_token_id,
        next_token_logprob,
        next_token_rank,
        eos_ids,
        is_master_in_dp,
        extra_post_req_handle_func=None,
        pd_prefill_chunked_handle_func=None,
    ):
        if self.output_len <= 0:
            return
        req_obj, shm_req = self.req_obj, self.req_obj.shm_req
        req_obj.set_next_gen_token_id(next_token_id, next_token_logprob, self.output_len, rank=next_token_rank)
        if req_obj.finish_status.is_finished():
            return
        req_obj.update_finish_status(eos_ids=eos_ids, output_len=self.output_len)
        if is_master_in_dp:
            shm_req.shm_cur_output_len = self.output_len
            if req_obj.finish_status.is_finished():
                shm_req.finish_status = req_obj.finish_status
            shm_req.candetoken_out_len = self.output_len


class InferenceContext:
    overlap_stream = None

    def register(self, backend, req_manager, radix_cache, shm_req_manager, vocab_size):
        self.backend = backend
        self.req_manager = req_manager
        self.radix_cache = radix_cache
        self.shm_req_manager = shm_req_manager
        self.requests_mapping = {}
        self.infer_req_ids = []

    def get_overlap_stream(self):
        if self.overlap_stream is None:
            self.overlap_stream = cuda.Stream()
        return self.overlap_stream

    def add_reqs(self, requests, init_prefix_cache=True):
        made = []
        for r_id, r_index, multimodal_params, _ in requests:
            made.append(InferReq(r_id, self.req_manager.alloc(), r_index, multimodal_params))
            self.requests_mapping[r_id] = made[-1]
        self.infer_req_ids.extend(each.req_id for each in made)
        return made

    def filter_reqs(self, finished_reqs):
        if finished_reqs:
            self._filter([req.req_id for req in finished_reqs])

    @no_grad()
    def _filter(self, finished_request_ids, modify_shm_finish_state=True):
        freed = [self.requests_mapping.pop(request_id).req_idx for request_id in finished_request_ids]
        self.req_manager.free(freed, [])
        self.infer_req_ids = [each for each in self.infer_req_ids if each not in finished_request_ids]


class PinMemTensorManager:
    """Buffers on the CPU that copies from the GPU are written to; each is used again after three more."""

    def __init__(self):
        self.key_to_tensor_list = collections.defaultdict(list)
        self.key_to_alloc_index = collections.Counter()
        self.buffer_size = 4

    def alloc_pin_tensor(self, key, size, dtype):
        buffers = self.key_to_tensor_list[key]
        index = self.key_to_alloc_index[key] % self.buffer_size
        self.key_to_alloc_index[key] += 1
        if index == len(buffers):
            buffers.append(Tensor(size))
        buffers[index].shape = (size,)
        return buffers[index]

    def gen_from_list(self, key, data, dtype):
        return tensor(data)

    def async_copy_from_gpu_tensor(self, key, gpu_tensor):
        pin_mem = self.alloc_pin_tensor(key, gpu_tensor.shape[0], "int64")
        return pin_mem.copy_(gpu_tensor, non_blocking=True)

    def get_const_cpu_tensor(self, key, shape, fill_value, dtype):
        return tensor((fill_value,) * shape[0])


g_infer_context = InferenceContext()
g_pin_mem_manager = PinMemTensorManager()
