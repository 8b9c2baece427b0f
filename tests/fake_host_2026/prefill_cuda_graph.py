"""CUDA graphs of prefill steps, cut at every attention: its layers only, one for each number of new tokens."""

import bisect

from .batch_objs import ModelInput
from .machine import cuda, empty, get_env_start_args, no_grad, on_gpu, without_reference

SIZES = (4, 8, 16, 32)


class PrefillCudaGraph:
    def __init__(self, decode_cuda_graph, tp_world_size):
        self.graph = {}
        self.tp_world_size = tp_world_size
        self.mempool = cuda.graph_pool_handle() if decode_cuda_graph is None else decode_cuda_graph.mempool
        self.args = get_env_start_args()
        self.enable_prefill_microbatch_overlap = self.args.enable_prefill_microbatch_overlap
        self.max_handle_token_num = min(self.args.prefill_cudagraph_max_handle_token, self.args.batch_max_tokens)
        sizes = {each for each in SIZES if each <= self.max_handle_token_num} | {self.max_handle_token_num}
        if self.args.enable_tpsp_mix_mode:
            sizes = {-(-each // self.tp_world_size) * self.tp_world_size for each in sizes}
        self.graph_handle_token_nums = sorted(sizes)

    def can_run(self, handle_token_num):
        return handle_token_num <= self.max_handle_token_num

    def need_capture(self, handle_token_num):
        return self.find_closest_graph_handle_token_num(handle_token_num=handle_token_num) not in self.graph

    def find_closest_graph_handle_token_num(self, handle_token_num):
        index = bisect.bisect_left(self.graph_handle_token_nums, handle_token_num)
        return self.graph_handle_token_nums[index] if index < len(self.graph_handle_token_nums) else None

    def _capture_prefill(self, prefill_func, input_tensors, infer_state):
        handle_token_num = infer_state.total_token_num - infer_state.prefix_total_token_num
        infer_state.mem_pool = self.mempool
        infer_state.prefill_cuda_graph_create_graph_obj()
        infer_state.prefill_cuda_graph_get_current_capture_graph().__enter__()
        graph_input_tensors = [empty(*e.shape) for e in input_tensors]
        graph_out_tensors = prefill_func(graph_input_tensors, infer_state)
        infer_state.prefill_cuda_graph_get_current_capture_graph().__exit__(None, None, None)
        graph_input_tensors = [without_reference(e) for e in graph_input_tensors]
        graph_out_tensors = [without_reference(e) for e in graph_out_tensors]
        self.graph[handle_token_num] = (infer_state, graph_input_tensors, graph_out_tensors)
        self.replay(input_tensors, infer_state)
        return graph_out_tensors

    def capture_prefill(self, prefill_func, input_tensors, infer_state, input_tensors1=None, infer_state1=None):
        assert not self.enable_prefill_microbatch_overlap
        return self._capture_prefill(prefill_func=prefill_func, input_tensors=input_tensors, infer_state=infer_state)

    def _replay(self, input_tensors, infer_state):
        handle_token_num = infer_state.total_token_num - infer_state.prefix_total_token_num
        graph_infer_state, graph_input_tensors, graph_output_tensors = self.graph[handle_token_num]
        for graph_in_tensor, in_tensor in zip(graph_input_tensors, input_tensors):
            graph_in_tensor.copy_(in_tensor)
        graph_infer_state.copy_for_prefill_cuda_graph(new_infer_state=infer_state)
        graph_infer_state.prefill_replay(infer_state)
        return graph_output_tensors

    def replay(self, input_tensors, infer_state, input_tensor1=None, infer_state1=None):
        assert not self.enable_prefill_microbatch_overlap
        return self._replay(input_tensors, infer_state)

    @no_grad()
    def warmup(self, model):
        for handle_token_num in self.graph_handle_token_nums[::-1]:
            model.forward(
                ModelInput(
                    batch_size=1,
                    total_token_num=handle_token_num,
                    max_q_seq_len=handle_token_num,
                    max_kv_seq_len=handle_token_num,
                    max_cache_len=0,
                    input_ids=on_gpu((1,) * handle_token_num),
                    mem_indexes=on_gpu((0,) * handle_token_num),
                    b_req_idx=on_gpu((model.req_manager.HOLD_REQUEST_ID,)),
                    b_mtp_index=on_gpu((0,)),
                    b_seq_len=on_gpu((handle_token_num,)),
                    b_ready_cache_len=on_gpu((0,)),
                    b_prefill_start_loc=on_gpu((0,)),
                    is_prefill=True,
                    b_prefill_has_output_cpu=[False],
                    prefix_total_token_num=0,
                    multimodal_params=[{"images": [], "audios": []}],
                    **model._gen_special_model_input(token_num=handle_token_num),
                )
            )
