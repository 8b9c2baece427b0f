"""CUDA graphs of decode steps: one for each number of rows."""

import bisect
import copy

from .batch_objs import ModelInput
from .machine import args, cuda, get_env_start_args, no_grad, on_gpu, trouble


class _TorchMemorySaverFake:
    """What stands where torch_memory_saver is off."""

    def cuda_graph(self, graph_obj, **kwargs):
        return cuda.graph(graph_obj, **kwargs)


class _TorchMemorySaver:
    def cuda_graph(self, graph_obj, **kwargs):
        graph_obj.saved_by = "torch_memory_saver"
        return cuda.graph(graph_obj, **kwargs)


class TorchMemorySaverWrapper:
    def __new__(cls, enable_torch_memory_saver=False):
        return _TorchMemorySaver() if enable_torch_memory_saver else _TorchMemorySaverFake()


class CudaGraph:
    @staticmethod
    def gen_cuda_graph_batch_sizes(max_batch_size=8, tp_world_size=1):
        mtp_size = args.mtp_step + 1
        split, step = args.graph_split_batch_size * mtp_size, args.graph_grow_step_size * mtp_size
        sizes = {i * mtp_size for i in range(1, args.graph_split_batch_size + 1)}
        sizes |= set(range(split + step, max_batch_size, step))
        sizes = {each for each in sizes if each < max_batch_size} | {max_batch_size}
        if args.enable_tpsp_mix_mode:
            sizes = {-(-each // tp_world_size) * tp_world_size for each in sizes}
        return sorted(sizes)

    def __init__(self, max_batch_size=8, max_len_in_batch=8192, tp_world_size=1):
        self.graph = {}
        self.tp_world_size = tp_world_size
        self.mempool = cuda.graph_pool_handle()
        self.args = get_env_start_args()
        self.mtp_step = self.args.mtp_step
        self.max_batch_size = max_batch_size
        self.graph_max_len_in_batch = max_len_in_batch
        self.enable_decode_microbatch_overlap = self.args.enable_decode_microbatch_overlap
        self.torch_memory_saver = TorchMemorySaverWrapper(self.args.enable_torch_memory_saver)
        self.cuda_graph_batch_sizes = self.gen_cuda_graph_batch_sizes(
            max_batch_size=max_batch_size, tp_world_size=tp_world_size
        )

    def can_run(self, batch_size, max_len_in_batch):
        return batch_size <= self.max_batch_size and max_len_in_batch <= self.graph_max_len_in_batch

    def need_capture(self, batch_size):
        return self.find_closest_graph_batch_size(batch_size) not in self.graph

    def find_closest_graph_batch_size(self, batch_size):
        index = bisect.bisect_left(self.cuda_graph_batch_sizes, batch_size)
        return self.cuda_graph_batch_sizes[index] if index < len(self.cuda_graph_batch_sizes) else None

    def _capture_decode(self, decode_func, infer_state):
        graph_obj = cuda.CUDAGraph()
        batch_size = infer_state.input_ids.shape[0]
        infer_state.max_kv_seq_len = self.graph_max_len_in_batch
        infer_state.total_token_num = self.graph_max_len_in_batch * batch_size
        pure_para_set = set(vars(infer_state).keys())
        cuda.synchronize()
        decode_func(copy.copy(infer_state))
        cuda.synchronize()
        # The copy's attention state refers to the original: what kernels keep has arrived there, and must go.
        for param_name in set(vars(infer_state).keys()) - pure_para_set:
            delattr(infer_state, param_name)
        with self.torch_memory_saver.cuda_graph(graph_obj, pool=self.mempool):
            model_output = decode_func(infer_state)
        self.graph[batch_size] = (graph_obj, infer_state, model_output)
        graph_obj.replay()
        return model_output

    def _capture_decode_overlap(self, decode_func, infer_state, infer_state1):
        graph_obj = cuda.CUDAGraph()
        batch_size = infer_state.input_ids.shape[0]
        for state in (infer_state, infer_state1):
            state.max_kv_seq_len = self.graph_max_len_in_batch
            state.total_token_num = self.graph_max_len_in_batch * batch_size
        pure = [(state, set(vars(state))) for state in (infer_state, infer_state1)]
        cuda.synchronize()
        decode_func(copy.copy(infer_state), copy.copy(infer_state1))
        cuda.synchronize()
        for state, names in pure:
            for name in set(vars(state)) - names:
                delattr(state, name)
        with self.torch_memory_saver.cuda_graph(graph_obj, pool=self.mempool):
            model_output, model_output1 = decode_func(infer_state, infer_state1)
        self.graph[batch_size] = (graph_obj, infer_state, infer_state1, model_output, model_output1)
        graph_obj.replay()
        return model_output, model_output1

    def capture_decode(self, decode_func, infer_state, infer_state1=None):
        if self.enable_decode_microbatch_overlap:
            return self._capture_decode_overlap(decode_func, infer_state, infer_state1)
        assert infer_state1 is None
        return self._capture_decode(decode_func, infer_state)

    def _replay(self, infer_state):
        trouble()
        batch_size = infer_state.input_ids.shape[0]
        graph_obj, graph_infer_state, graph_output = self.graph[batch_size]
        graph_infer_state.copy_for_cuda_graph(infer_state)
        graph_obj.replay()
        return graph_output

    def _replay_overlap(self, infer_state, infer_state1):
        batch_size = infer_state.input_ids.shape[0]
        graph_obj, graph_infer_state, graph_infer_state1, graph_model_output, graph_model_output1 = self.graph[
            batch_size
        ]
        graph_infer_state.copy_for_cuda_graph(infer_state)
        graph_infer_state1.copy_for_cuda_graph(infer_state1)
        graph_obj.replay()
        return graph_model_output, graph_model_output1

    def replay(self, infer_state, infer_state1=None):
        if self.enable_decode_microbatch_overlap:
            return self._replay_overlap(infer_state, infer_state1)
        assert infer_state1 is None
        return self._replay(infer_state)

    @no_grad()
    def warmup(self, model):
        for batch_size in self.cuda_graph_batch_sizes[::-1]:
            model.forward(self._dummy(model, batch_size))

    @no_grad()
    def warmup_overlap(self, model):
        for batch_size in self.cuda_graph_batch_sizes[::-1]:
            model.microbatch_overlap_decode(*[self._dummy(model, batch_size) for _ in range(2)])

    def _dummy(self, model, batch_size):
        """All rows are the same request, which nobody has made."""
        zeros = (0,) * batch_size
        return ModelInput(
            batch_size=batch_size,
            total_token_num=batch_size * 2,
            max_q_seq_len=1,
            max_kv_seq_len=self.graph_max_len_in_batch,
            input_ids=on_gpu((1,) * batch_size),
            mem_indexes=on_gpu(zeros),
            b_req_idx=on_gpu((model.req_manager.HOLD_REQUEST_ID,) * batch_size),
            b_seq_len=on_gpu((2,) * batch_size),
            b_mtp_index=on_gpu(zeros),
            b_position_delta=on_gpu(zeros),
            is_prefill=False,
            multimodal_params=[{"images": [], "audios": []}] * batch_size,
            **model._gen_special_model_input(batch_size),
        )
