"""The model: what a forward does, and what happens before the server serves."""

import contextlib
import copy

from .base_att import TritonAttBackend
from .batch_objs import ModelInput, ModelOutput
from .communication_op import dist_group_manager
from .cuda_graph import CudaGraph, TorchMemorySaverWrapper
from .gather_token_id import (
    copy_kv_index_to_req,
    gather_token,
    gather_token_prefill_decode_mixed,
    init_req_to_token_indexes,
)
from .infer_struct import InferStateInfo
from .layer_infer import LlamaPostLayerInfer, LlamaPreLayerInfer, LlamaTransformerLayerInfer
from .machine import config, cuda, dist, get_env_start_args, longest_prefill_fails, no_grad, on_gpu, padded
from .prefill_cuda_graph import PrefillCudaGraph
from .req_manager import MemoryManager, ReqManager

failures_to_come = [longest_prefill_fails]


class TpPartBaseModel:
    pre_layer_infer_class = LlamaPreLayerInfer
    post_layer_infer_class = LlamaPostLayerInfer
    transformer_layer_infer_class = LlamaTransformerLayerInfer
    infer_state_class = InferStateInfo

    def __init__(self, kvargs):
        self.args = get_env_start_args()
        self.run_mode = kvargs["run_mode"]
        self.weight_dir_ = kvargs["weight_dir"]
        self.batch_max_tokens = kvargs.get("batch_max_tokens", None)
        self.max_req_num = kvargs.get("max_req_num", 1000)
        self.max_seq_length = kvargs.get("max_seq_length", 1024 * 5)
        self.is_token_healing = kvargs.get("is_token_healing", False)
        self.return_all_prompt_logics = kvargs.get("return_all_prompt_logics", False)
        self.data_type = "bfloat16"
        self.graph_max_batch_size = kvargs.get("graph_max_batch_size", 16)
        if self.args.enable_decode_microbatch_overlap:
            self.graph_max_batch_size //= 2
        self.graph_max_batch_size *= self.args.mtp_step + 1
        self.graph_max_len_in_batch = kvargs.get("graph_max_len_in_batch", 8192)
        self.disable_cudagraph = kvargs.get("disable_cudagraph", False)
        self.tp_world_size_ = self.args.tp
        self.enable_tpsp_mix_mode = self.args.enable_tpsp_mix_mode
        self.torch_memory_saver = TorchMemorySaverWrapper(self.args.enable_torch_memory_saver)
        self.is_mtp_mode = self.args.mtp_mode is not None
        self.prefill_graph = None
        self._init_config()
        self._init_weights()
        self._init_req_manager()
        self._init_mem_manager()
        self.req_manager.mem_manager = self.mem_manager
        self._init_infer_layer()
        self._init_some_value()
        self._init_custom()
        self._init_att_backend()
        self._init_att_backend1()
        self._autotune_warmup()
        self._init_padded_req()
        self._init_cudagraph()
        self._init_prefill_cuda_graph()
        self._check_max_len_infer()

    def _init_config(self):
        self.config = dict(config)

    def _init_weights(self, start_layer_index=0):
        self.pre_post_weight = -1
        self.trans_layers_weight = list(range(start_layer_index, start_layer_index + self.config["n_layer"]))

    def _init_mem_manager(self):
        self.mem_manager = MemoryManager(4096, self.data_type, 1, 8, self.config["n_layer"])

    def _init_req_manager(self):
        self.req_manager = ReqManager(self.max_req_num, self.max_seq_length, None)

    def _init_infer_layer(self, start_layer_index=0):
        self.pre_infer = self.pre_layer_infer_class(network_config=self.config)
        self.post_infer = self.post_layer_infer_class(network_config=self.config)
        numbers = range(start_layer_index, start_layer_index + self.config["n_layer"])
        self.layers_infer = [self.transformer_layer_infer_class(i, network_config=self.config) for i in numbers]

    def _init_some_value(self):
        self.layers_num = self.config["n_layer"]
        self.vocab_size = 1000

    def _init_custom(self):
        pass

    def _init_att_backend(self):
        self.prefill_att_backend = TritonAttBackend(model=self)
        self.decode_att_backend = TritonAttBackend(model=self)

    def _init_att_backend1(self):
        self.prefill_att_backend1 = None
        self.decode_att_backend1 = None

    def _init_cudagraph(self):
        self.graph = None
        if not self.disable_cudagraph:
            self.graph = CudaGraph(
                max_batch_size=self.graph_max_batch_size,
                max_len_in_batch=self.graph_max_len_in_batch,
                tp_world_size=self.tp_world_size_,
            )
        if self.graph is not None:
            if self.args.enable_decode_microbatch_overlap:
                self.graph.warmup_overlap(self)
            else:
                self.graph.warmup(self)

    def _init_prefill_cuda_graph(self):
        if self.args.enable_prefill_cudagraph:
            self.prefill_graph = PrefillCudaGraph(decode_cuda_graph=self.graph, tp_world_size=self.tp_world_size_)
            self.prefill_graph.warmup(self)

    # A forward --------------------------------------------------------------------------------------------------------

    @no_grad()
    def forward(self, model_input):
        model_input.to_cuda()
        assert model_input.mem_indexes.is_cuda
        if model_input.is_prefill:
            return self._prefill(model_input)
        return self._decode(model_input)

    def _create_inferstate(self, model_input, microbatch_index=0):
        infer_state = self.infer_state_class()
        for name in ("input_ids", "is_prefill", "batch_size", "total_token_num", "max_q_seq_len", "max_kv_seq_len",
                     "max_cache_len", "prefix_total_token_num", "b_req_idx", "b_seq_len", "b_mtp_index", "b_position_delta",
                     "b_ready_cache_len", "multimodal_params", "mtp_draft_input_hiddens"):  # fmt: skip
            setattr(infer_state, name, getattr(model_input, name))
        infer_state.is_token_healing = self.is_token_healing
        infer_state.return_all_prompt_logics = self.return_all_prompt_logics
        infer_state.mem_manager = self.mem_manager
        infer_state.req_manager = self.req_manager
        infer_state.mem_index = model_input.mem_indexes
        infer_state.microbatch_index = microbatch_index
        infer_state.dist_group = dist_group_manager.get_group(microbatch_index)
        if infer_state.is_prefill:
            infer_state.prefill_att_state = self.prefill_att_backend.create_att_prefill_state(infer_state=infer_state)
            if self.prefill_att_backend1 is not None:
                state1 = self.prefill_att_backend1.create_att_prefill_state(infer_state=infer_state)
                infer_state.prefill_att_state1 = state1
        else:
            infer_state.decode_att_state = self.decode_att_backend.create_att_decode_state(infer_state=infer_state)
            if self.decode_att_backend1 is not None:
                infer_state.decode_att_state1 = self.decode_att_backend1.create_att_decode_state(
                    infer_state=infer_state
                )
        return infer_state

    def _create_padded_decode_model_input(self, model_input, new_batch_size):
        count = new_batch_size - model_input.batch_size
        if count == 0:
            return model_input
        new = copy.copy(model_input)
        new.batch_size = new_batch_size
        new.total_token_num += count * 2
        new.max_kv_seq_len = max(2, model_input.max_kv_seq_len)
        new.input_ids = padded(new.input_ids, count, 1)
        new.b_req_idx = padded(new.b_req_idx, count, self.req_manager.HOLD_REQUEST_ID)
        new.b_mtp_index = padded(new.b_mtp_index, count, 0)
        new.b_seq_len = padded(new.b_seq_len, count, 2)
        new.b_position_delta = padded(new.b_position_delta, count, 0)
        new.mem_indexes = padded(new.mem_indexes, count, self.mem_manager.HOLD_TOKEN_MEMINDEX)
        new.multimodal_params = new.multimodal_params + [{"images": [], "audios": []}] * count
        if new.mtp_draft_input_hiddens is not None:
            new.mtp_draft_input_hiddens = padded(new.mtp_draft_input_hiddens, count, 0)
        new.check_input()
        return new

    def _create_padded_prefill_model_input(self, model_input, new_handle_token_num):
        """All tokens of the padding belong to one more request."""
        count = new_handle_token_num - (model_input.total_token_num - model_input.prefix_total_token_num)
        if count == 0:
            return model_input
        new = copy.copy(model_input)
        new.batch_size = model_input.batch_size + 1
        new.total_token_num += count
        new.max_q_seq_len = max(count, model_input.max_q_seq_len)
        new.max_kv_seq_len = max(count, model_input.max_kv_seq_len)
        new.input_ids = padded(new.input_ids, count, 1)
        new.mem_indexes = padded(new.mem_indexes, count, self.mem_manager.HOLD_TOKEN_MEMINDEX)
        new.b_req_idx = padded(new.b_req_idx, 1, self.req_manager.HOLD_REQUEST_ID)
        new.b_mtp_index = padded(new.b_mtp_index, 1, 0)
        new.b_seq_len = padded(new.b_seq_len, 1, count)
        new.b_ready_cache_len = padded(new.b_ready_cache_len, 1, 0)
        new.b_prefill_has_output_cpu = [*new.b_prefill_has_output_cpu, False]
        new.multimodal_params = [*new.multimodal_params, {"images": [], "audios": []}]
        if new.mtp_draft_input_hiddens is not None:
            new.mtp_draft_input_hiddens = padded(new.mtp_draft_input_hiddens, count, 0)
        new.check_input()
        return new

    def _create_unpad_decode_model_output(self, model_output, origin_batch_size):
        if model_output.logits.shape[0] == origin_batch_size:
            return model_output
        new = copy.copy(model_output)
        new.logits = new.logits[0:origin_batch_size]
        if new.mtp_main_output_hiddens is not None:
            new.mtp_main_output_hiddens = new.mtp_main_output_hiddens[0:origin_batch_size]
        return new

    def _create_unpad_prefill_model_output(self, padded_model_output, origin_handle_token_num, origin_batch_size):
        new = copy.copy(padded_model_output)
        new.logits = new.logits[0:origin_batch_size]
        if new.mtp_main_output_hiddens is not None:
            new.mtp_main_output_hiddens = new.mtp_main_output_hiddens[0:origin_handle_token_num]
        return new

    def _prefill(self, model_input):
        if self.args.enable_prefill_decode_mixed and model_input.b_is_decode_req is not None:
            self._gather_mixed(model_input)
        origin_handle_token_num = model_input.total_token_num - model_input.prefix_total_token_num
        origin_batch_size = model_input.batch_size
        infer_handle_token_num = origin_handle_token_num
        if self.args.enable_tpsp_mix_mode:
            infer_handle_token_num = -(-origin_handle_token_num // self.tp_world_size_) * self.tp_world_size_
        if self.prefill_graph is not None and self.prefill_graph.can_run(handle_token_num=infer_handle_token_num):
            infer_handle_token_num = self.prefill_graph.find_closest_graph_handle_token_num(
                handle_token_num=infer_handle_token_num
            )
        model_input = self._create_padded_prefill_model_input(
            model_input=model_input, new_handle_token_num=infer_handle_token_num
        )
        infer_state = self._create_inferstate(model_input)
        self._index_prefill(model_input, infer_state)
        prefill_mem_indexes_ready_event = cuda.Event()
        prefill_mem_indexes_ready_event.record()
        infer_state.init_some_extra_state(self)
        infer_state.init_att_state()
        model_output = self._context_forward(infer_state)
        model_output = self._create_unpad_prefill_model_output(
            padded_model_output=model_output,
            origin_handle_token_num=origin_handle_token_num,
            origin_batch_size=origin_batch_size,
        )
        model_output.prefill_mem_indexes_ready_event = prefill_mem_indexes_ready_event
        return model_output

    def _gather_mixed(self, model_input):
        gather_token_prefill_decode_mixed(
            input_ids=model_input.input_ids,
            req_to_next_token_ids=self.req_manager.req_sampling_params_manager.req_to_next_token_ids,
            b_req_idx=model_input.b_req_idx,
            b_mtp_index=model_input.b_mtp_index,
            b_is_decode_req=model_input.b_is_decode_req,
            b_prefill_start_loc=model_input.b_prefill_start_loc,
        )

    def _index_prefill(self, model_input, infer_state):
        init_req_to_token_indexes(
            req_to_token_indexs=self.req_manager.req_to_token_indexs,
            b_req_idx=infer_state.b_req_idx,
            b_seq_len=infer_state.b_seq_len,
            b_ready_cache_len=infer_state.b_ready_cache_len,
            b_start_loc=model_input.b_prefill_start_loc,
            alloc_mem_index=infer_state.mem_index,
            max_q_seq_len=infer_state.max_q_seq_len,
        )

    def _gather(self, model_input):
        if model_input.input_ids is None:
            table = self.req_manager.req_sampling_params_manager.req_to_next_token_ids
            model_input.input_ids = gather_token(table, model_input.b_req_idx, model_input.b_mtp_index)

    def _fill(self, infer_state):
        """What the GPU must know of a decode step before its layers run."""
        copy_kv_index_to_req(
            self.req_manager.req_to_token_indexs, infer_state.b_req_idx, infer_state.b_seq_len, infer_state.mem_index
        )
        infer_state.init_some_extra_state(self)
        infer_state.init_att_state()

    def _decode(self, model_input):
        self._gather(model_input)
        origin_batch_size = infer_batch_size = model_input.batch_size
        if self.args.enable_tpsp_mix_mode:
            infer_batch_size = -(-model_input.batch_size // self.tp_world_size_) * self.tp_world_size_
        if self.graph is not None and self.graph.can_run(
            batch_size=infer_batch_size, max_len_in_batch=model_input.max_kv_seq_len
        ):
            infer_batch_size = self.graph.find_closest_graph_batch_size(batch_size=infer_batch_size)
            model_input = self._create_padded_decode_model_input(
                model_input=model_input, new_batch_size=infer_batch_size
            )
            infer_state = self._create_inferstate(model_input)
            need_capture = self.graph.need_capture(infer_batch_size)
            infer_state.is_cuda_graph = need_capture
            self._fill(infer_state)
            if need_capture:
                model_output = self.graph.capture_decode(self._token_forward, infer_state)
            else:
                model_output = self.graph.replay(infer_state)
        else:
            model_input = self._create_padded_decode_model_input(
                model_input=model_input, new_batch_size=infer_batch_size
            )
            infer_state = self._create_inferstate(model_input)
            self._fill(infer_state)
            model_output = self._token_forward(infer_state)
        return self._create_unpad_decode_model_output(model_output, origin_batch_size=origin_batch_size)

    def _context_forward(self, infer_state):
        input_embs = self.pre_infer.context_forward(infer_state.input_ids, infer_state, self.pre_post_weight)
        input_embs = self.pre_infer._tpsp_sp_split(input=input_embs, infer_state=infer_state)
        input_tensors = [input_embs]

        def prefill_func(input_tensors, infer_state):
            _input_embs = input_tensors[0]
            for i in range(self.layers_num):
                layer = self.layers_infer[i]
                _input_embs = layer.context_forward(_input_embs, infer_state, self.trans_layers_weight[i])
            return [_input_embs]

        handle_token_num = infer_state.input_ids.shape[0]
        if self.prefill_graph is not None and self.prefill_graph.can_run(handle_token_num=handle_token_num):
            if self.prefill_graph.need_capture(handle_token_num=handle_token_num):
                output_tensors = self.prefill_graph.capture_prefill(
                    prefill_func=prefill_func, input_tensors=input_tensors, infer_state=infer_state
                )
            else:
                output_tensors = self.prefill_graph.replay(input_tensors=input_tensors, infer_state=infer_state)
        else:
            output_tensors = prefill_func(input_tensors, infer_state)
        input_embs = output_tensors[0]
        last_input_embs = self.post_infer._tpsp_allgather(input=input_embs, infer_state=infer_state)
        predict_logits = self.post_infer.token_forward(last_input_embs, infer_state, self.pre_post_weight)
        model_output = ModelOutput(logits=predict_logits, prompt_logics=infer_state.prompt_logics)
        if self.is_mtp_mode:
            input_embs = self.pre_infer._tpsp_allgather(input=input_embs, infer_state=infer_state)
            model_output.mtp_main_output_hiddens = input_embs.contiguous()
        dist_group_manager.clear_deepep_buffer()
        return model_output

    def _token_forward(self, infer_state):
        input_embs = self.pre_infer.token_forward(infer_state.input_ids, infer_state, self.pre_post_weight)
        input_embs = self.pre_infer._tpsp_sp_split(input=input_embs, infer_state=infer_state)
        for i in range(self.layers_num):
            layer = self.layers_infer[i]
            input_embs = layer.token_forward(input_embs, infer_state, self.trans_layers_weight[i])
        last_input_embs = self.post_infer._tpsp_allgather(input=input_embs, infer_state=infer_state)
        predict_logits = self.post_infer.token_forward(
            last_input_embs, infer_state=infer_state, layer_weight=self.pre_post_weight
        )
        model_output = ModelOutput(logits=predict_logits.contiguous())
        if self.is_mtp_mode:
            input_embs = self.pre_infer._tpsp_allgather(input=input_embs, infer_state=infer_state)
            model_output.mtp_main_output_hiddens = input_embs.contiguous()
        if infer_state.is_cuda_graph:
            model_output.to_no_ref_tensor()
        return model_output

    # Two microbatches at once -----------------------------------------------------------------------------------------

    @no_grad()
    def microbatch_overlap_prefill(self, model_input0, model_input1):
        model_input0.to_cuda()
        model_input1.to_cuda()
        states, origins = [], []
        for index, given in enumerate((model_input0, model_input1)):
            model_input = given
            if self.args.enable_prefill_decode_mixed and model_input.b_is_decode_req is not None:
                self._gather_mixed(model_input)
            tokens = model_input.total_token_num - model_input.prefix_total_token_num
            origins.append((tokens, model_input.batch_size))
            whole = -(-tokens // self.tp_world_size_) * self.tp_world_size_
            model_input = self._create_padded_prefill_model_input(model_input=model_input, new_handle_token_num=whole)
            infer_state = self._create_inferstate(model_input, index)
            self._index_prefill(model_input, infer_state)
            infer_state.init_some_extra_state(self)
            infer_state.init_att_state()
            states.append(infer_state)
        prefill_mem_indexes_ready_event = cuda.Event()
        prefill_mem_indexes_ready_event.record()
        outputs = []
        for output, origin in zip(self._overlap_tpsp_context_forward(states[0], infer_state1=states[1]), origins):
            outputs.append(self._create_unpad_prefill_model_output(output, *origin))
            outputs[-1].prefill_mem_indexes_ready_event = prefill_mem_indexes_ready_event
        return tuple(outputs)

    @no_grad()
    def microbatch_overlap_decode(self, model_input0, model_input1):
        model_input0.to_cuda()
        model_input1.to_cuda()
        self._gather(model_input0)
        self._gather(model_input1)
        assert model_input0.batch_size == model_input1.batch_size
        origin_batch_size = model_input0.batch_size
        max_len_in_batch = max(model_input0.max_kv_seq_len, model_input1.max_kv_seq_len)
        infer_batch_size = -(-origin_batch_size // self.tp_world_size_) * self.tp_world_size_
        graphs = self.graph is not None and self.graph.can_run(infer_batch_size, max_len_in_batch)
        need_capture = False
        if graphs:
            infer_batch_size = self.graph.find_closest_graph_batch_size(infer_batch_size)
            need_capture = self.graph.need_capture(infer_batch_size)
        model_input0 = self._create_padded_decode_model_input(model_input0, infer_batch_size)
        model_input1 = self._create_padded_decode_model_input(model_input1, infer_batch_size)
        infer_state0 = self._create_inferstate(model_input0, 0)
        infer_state0.is_cuda_graph = need_capture
        self._fill(infer_state0)
        infer_state1 = self._create_inferstate(model_input1, 1)
        infer_state1.is_cuda_graph = need_capture
        self._fill(infer_state1)
        if need_capture:
            outputs = self.graph.capture_decode(
                self._overlap_tpsp_token_forward, infer_state0, infer_state1=infer_state1
            )
        elif graphs:
            outputs = self.graph.replay(infer_state0, infer_state1=infer_state1)
        else:
            outputs = self._overlap_tpsp_token_forward(infer_state0, infer_state1=infer_state1)
        model_output0 = self._create_unpad_decode_model_output(outputs[0], origin_batch_size=origin_batch_size)
        model_output1 = self._create_unpad_decode_model_output(outputs[1], origin_batch_size=origin_batch_size)
        return model_output0, model_output1

    def _overlap_tpsp_context_forward(self, infer_state, infer_state1):
        input_embs, input_embs1 = self.pre_infer.overlap_tpsp_context_forward(
            infer_state.input_ids, infer_state1.input_ids, infer_state, infer_state1, self.pre_post_weight
        )
        input_embs = self.pre_infer._tpsp_sp_split(input=input_embs, infer_state=infer_state)
        input_embs1 = self.pre_infer._tpsp_sp_split(input=input_embs1, infer_state=infer_state1)
        for i in range(self.layers_num):
            input_embs, input_embs1 = self.layers_infer[i].overlap_tpsp_context_forward(
                input_embs, input_embs1, infer_state, infer_state1, self.trans_layers_weight[i]
            )
        return self._heads(input_embs, input_embs1, infer_state, infer_state1)

    def _overlap_tpsp_token_forward(self, infer_state, infer_state1):
        input_embs, input_embs1 = self.pre_infer.overlap_tpsp_token_forward(
            infer_state.input_ids, infer_state1.input_ids, infer_state, infer_state1, self.pre_post_weight
        )
        input_embs = self.pre_infer._tpsp_sp_split(input=input_embs, infer_state=infer_state)
        input_embs1 = self.pre_infer._tpsp_sp_split(input=input_embs1, infer_state=infer_state1)
        for i in range(self.layers_num):
            input_embs, input_embs1 = self.layers_infer[i].overlap_tpsp_token_forward(
                input_embs, input_embs1, infer_state, infer_state1, self.trans_layers_weight[i]
            )
        model_output, model_output1 = self._heads(input_embs, input_embs1, infer_state, infer_state1)
        if infer_state.is_cuda_graph:
            model_output.to_no_ref_tensor()
            model_output1.to_no_ref_tensor()
        return model_output, model_output1

    def _heads(self, input_embs, input_embs1, infer_state, infer_state1):
        infer_state.call_overlap_hook()
        infer_state1.call_overlap_hook()
        last_input_embs = self.post_infer._tpsp_allgather(input=input_embs, infer_state=infer_state)
        last_input_embs1 = self.post_infer._tpsp_allgather(input=input_embs1, infer_state=infer_state1)
        predict_logits, predict_logits1 = self.post_infer.overlap_tpsp_token_forward(
            last_input_embs, last_input_embs1, infer_state, infer_state1, self.pre_post_weight
        )
        model_output, model_output1 = ModelOutput(logits=predict_logits), ModelOutput(logits=predict_logits1)
        if self.is_mtp_mode:
            model_output.mtp_main_output_hiddens = self.pre_infer._tpsp_allgather(input_embs, infer_state)
            model_output1.mtp_main_output_hiddens = self.pre_infer._tpsp_allgather(input_embs1, infer_state1)
        return model_output, model_output1

    # The start --------------------------------------------------------------------------------------------------------

    def autotune_layers(self):
        return 1

    @no_grad()
    def _autotune_warmup(self):
        """Prefills of several lengths through the first layers only; what fails here is forgotten."""
        dist.barrier()
        layer_num_bak = self.layers_num
        self.layers_num = self.autotune_layers()
        for input_len in (16, 4, 1):
            with contextlib.suppress(Exception):
                self.forward(self._dummy_prefill(input_len))
        self.layers_num = layer_num_bak
        dist.barrier()

    @no_grad()
    def _init_padded_req(self):
        dist.barrier()
        self.forward(self._dummy_prefill(1))

    @no_grad()
    def _check_max_len_infer(self):
        if getattr(self, "is_mtp_draft_model", False):  # an environment variable says so
            return
        dist.barrier()
        try:
            failures_to_come[0] -= 1
            if failures_to_come[0] >= 0:
                raise RuntimeError("CUDA out of memory")
            self.forward(self._dummy_prefill(self.batch_max_tokens))
        except RuntimeError as e:
            raise Exception("check max len infer fail, you can try: a smaller --mem_fraction") from e

    def _dummy_prefill(self, tokens):
        return ModelInput(
            batch_size=1,
            total_token_num=tokens,
            max_q_seq_len=tokens,
            max_kv_seq_len=tokens,
            max_cache_len=0,
            prefix_total_token_num=0,
            input_ids=on_gpu((1,) * tokens),
            mem_indexes=on_gpu((0,) * tokens),
            b_req_idx=on_gpu((self.req_manager.HOLD_REQUEST_ID,)),
            b_seq_len=on_gpu((tokens,)),
            b_mtp_index=on_gpu((0,)),
            b_ready_cache_len=on_gpu((0,)),
            b_prefill_start_loc=on_gpu((0,)),
            b_prefill_has_output_cpu=[False],
            is_prefill=True,
            multimodal_params=[{"images": [], "audios": []}],
            **self._gen_special_model_input(tokens),
        )

    def _gen_special_model_input(self, token_num):
        hiddens = on_gpu((1,) * token_num) if getattr(self, "is_mtp_draft_model", False) else None
        return {"mtp_draft_input_hiddens": hiddens}
