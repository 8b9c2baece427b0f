"""The state of one forward: its tensors, its attention states, and for a prefill graph the pieces of it."""

from .machine import Tensor, cuda, empty, gpu


class InferStateInfo:
    def __init__(self):
        self.prefill_att_state = None
        self.decode_att_state = None
        self.prefill_att_state1 = None
        self.decode_att_state1 = None
        self.input_ids = None
        self.batch_size = None
        self.total_token_num = None
        self.b_req_idx = None
        self.b_ready_cache_len = None
        self.b_shared_seq_len = None
        self.b_mark_shared_group = None
        self.b_mtp_index = None
        self.b_position_delta = None
        self.b_seq_len = None
        self.max_cache_len = None
        self.prefix_total_token_num = None
        self.is_prefill = None
        self.mem_manager = None
        self.req_manager = None
        self.mem_index = None
        self.prompt_logics = None
        self.multimodal_params = None
        self.dist_group = None
        self.b_q_seq_len = None
        self.position_ids = None
        self.max_q_seq_len = None
        self.max_kv_seq_len = None
        self.b_q_start_loc = None
        self.b_kv_start_loc = None
        self.mtp_draft_input_hiddens = None
        self.is_token_healing = self.return_all_prompt_logics = self.is_cuda_graph = False
        self.microbatch_index = 0
        self.need_dp_prefill_balance = False

    def init_some_extra_state(self, model):
        if self.is_prefill:
            self.b_q_seq_len = empty(*self.b_seq_len.shape)
            gpu.run("index", lambda whole, ready: tuple(a - b for a, b in zip(whole, ready)), self.b_q_seq_len,
                    self.b_seq_len, self.b_ready_cache_len)  # fmt: skip
        else:
            self.position_ids = empty(*self.b_seq_len.shape)
            gpu.run("index", lambda lengths: tuple(each - 1 for each in lengths), self.position_ids, self.b_seq_len)

    def init_att_state(self):
        state, state1 = (
            (self.prefill_att_state, self.prefill_att_state1)
            if self.is_prefill
            else (self.decode_att_state, self.decode_att_state1)
        )
        state.init_state()
        if state1 is not None:
            state1.init_state()

    def copy_for_cuda_graph(self, new_infer_state):
        for attr_name, attr_value in vars(new_infer_state).items():
            if isinstance(attr_value, Tensor):
                attr_ = getattr(self, attr_name, None)
                if attr_ is not None and attr_.data_ptr() != attr_value.data_ptr():
                    attr_.copy_(attr_value, non_blocking=True)
        self.decode_att_state.copy_for_decode_cuda_graph(new_infer_state.decode_att_state)
        if self.decode_att_state1 is not None:
            self.decode_att_state1.copy_for_decode_cuda_graph(new_infer_state.decode_att_state1)

    def call_overlap_hook(self):
        if getattr(self, "hook", None) is not None:
            self.hook()
            self.hook = None

    # A prefill graph --------------------------------------------------------------------------------------------------

    def prefill_cuda_graph_create_graph_obj(self):
        if not hasattr(self, "prefill_cuda_graph_exe_list"):
            self.prefill_cuda_graph_exe_list = []
        graph_obj = cuda.CUDAGraph()
        self.prefill_cuda_graph_exe_list.append((graph_obj, cuda.graph(graph_obj, pool=self.mem_pool)))

    def prefill_cuda_graph_get_current_capture_graph(self):
        last = self.prefill_cuda_graph_exe_list[-1]
        return last[1] if isinstance(last, tuple) else self.prefill_cuda_graph_exe_list[-2][1]

    def prefill_cuda_graph_add_cpu_runnning_func(self, func, after_graph):
        places = [
            i for i, e in enumerate(self.prefill_cuda_graph_exe_list) if isinstance(e, tuple) and e[1] is after_graph
        ]
        self.prefill_cuda_graph_exe_list.insert(places[0] + 1, func)

    def prefill_replay(self, new_infer_state):
        for func in self.prefill_cuda_graph_exe_list:
            if isinstance(func, tuple):
                func[0].replay()
            else:
                func(new_infer_state)

    def copy_for_prefill_cuda_graph(self, new_infer_state):
        for attr_name, attr_value in vars(new_infer_state).items():
            if isinstance(attr_value, Tensor):
                attr_ = getattr(self, attr_name, None)
                if attr_ is not None and attr_.data_ptr() != attr_value.data_ptr() and attr_.shape == attr_value.shape:
                    attr_.copy_(attr_value, non_blocking=True)
