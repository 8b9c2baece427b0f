"""Layers: the template that nearly all families share, Llama's, and one with linear attention (Qwen3-next)."""

from functools import partial

from .base_att import AttControl
from .communication_op import all_gather, all_gather_into_tensor, all_reduce, reduce_scatter_tensor
from .machine import HIDDEN, args, cuda, dist, empty, gpu, rowwise, trouble, without_reference

DTYPE = "bfloat16"


class BaseLayerInfer:
    def __init__(self):
        self.tp_rank_ = 0
        self.tp_world_size_ = args.tp

    def alloc_tensor(self, shape, dtype, device="cuda"):
        return empty(*shape)

    def _tpsp_allgather(self, input, infer_state):
        if self.tp_world_size_ > 1 and args.enable_tpsp_mix_mode:
            gather_input = self.alloc_tensor((input.shape[0] * self.tp_world_size_, HIDDEN), DTYPE)
            all_gather_into_tensor(gather_input, input, group=infer_state.dist_group, async_op=False)
            return gather_input
        return input

    def _tpsp_reduce(self, input, infer_state):
        if self.tp_world_size_ > 1 and args.enable_tpsp_mix_mode:
            reduce_o_tensor = self.alloc_tensor((input.shape[0] // self.tp_world_size_, HIDDEN), DTYPE)
            reduce_scatter_tensor(
                output=reduce_o_tensor, input=input, op=dist.ReduceOp.SUM, group=infer_state.dist_group, async_op=False
            )
            return reduce_o_tensor
        if self.tp_world_size_ > 1:
            all_reduce(input, op=dist.ReduceOp.SUM, group=infer_state.dist_group, async_op=False)
        return input

    def _tpsp_sp_split(self, input, infer_state):
        if self.tp_world_size_ > 1 and args.enable_tpsp_mix_mode:
            part = self.alloc_tensor((input.shape[0] // self.tp_world_size_, HIDDEN), DTYPE)
            gpu.run("pad_copy", lambda rows: rows[: part.shape[0]], part, input)
            return part
        return input


class TransformerLayerInferTpl(BaseLayerInfer):
    def __init__(self, layer_num, network_config):
        super().__init__()
        self.layer_num_ = layer_num

    def _post_cache_kv(self, cache_kv, infer_state, layer_weight):
        infer_state.mem_manager.operator.copy_kv_to_mem_manager(
            layer_index=self.layer_num_, mem_index=infer_state.mem_index, kv=cache_kv
        )

    def context_attention_forward(self, input_embdings, infer_state, layer_weight):
        q, cache_kv = self._get_qkv(input_embdings, infer_state, layer_weight)
        self._post_cache_kv(cache_kv, infer_state, layer_weight)
        o = self._context_attention_wrapper_run(
            q=q, cache_kv=cache_kv, infer_state=infer_state, layer_weight=layer_weight
        )
        q = None
        return self._get_o(o, infer_state, layer_weight)

    def context_forward(self, input_embdings, infer_state, layer_weight):
        input1 = self._att_norm(input_embdings, infer_state, layer_weight)
        o = self.context_attention_forward(input1, infer_state, layer_weight)
        input_embdings.add_(o)
        o = None
        input1 = self._ffn_norm(input_embdings, infer_state, layer_weight)
        ffn_out = self._ffn(input1, infer_state, layer_weight)
        input_embdings.add_(ffn_out)
        return input_embdings

    def token_attention_forward(self, input_embdings, infer_state, layer_weight):
        q, cache_kv = self._get_qkv(input_embdings, infer_state, layer_weight)
        self._post_cache_kv(cache_kv, infer_state, layer_weight)
        o = self._token_attention_kernel(q, infer_state, layer_weight)
        return self._get_o(o, infer_state, layer_weight)

    def token_forward(self, input_embdings, infer_state, layer_weight):
        input1 = self._att_norm(input_embdings, infer_state, layer_weight)
        o = self.token_attention_forward(input1, infer_state, layer_weight)
        input_embdings.add_(o)
        o = None
        input1 = self._ffn_norm(input_embdings, infer_state, layer_weight)
        ffn_out = self._ffn(input1, infer_state, layer_weight)
        input_embdings.add_(ffn_out)
        return input_embdings

    def _context_attention_wrapper_run(self, q, cache_kv, infer_state, layer_weight):
        """While a prefill graph is captured: end the piece in progress, keep a closure that attends, begin the next."""
        if cuda.is_current_stream_capturing():
            return self._cut(q, cache_kv, infer_state, layer_weight)
        return self._context_attention_kernel(q, cache_kv, infer_state, layer_weight)

    def _cut(self, q, cache_kv, infer_state, layer_weight):
        _q, _cache_kv = without_reference(q), without_reference(cache_kv)
        pre_capture_graph = infer_state.prefill_cuda_graph_get_current_capture_graph()
        pre_capture_graph.__exit__(None, None, None)
        with cuda.graph(cuda_graph=cuda.CUDAGraph()):  # never replayed: it says the shape
            shape = self._context_attention_kernel(_q, _cache_kv, infer_state, layer_weight).shape
        infer_state.prefill_cuda_graph_create_graph_obj()
        infer_state.prefill_cuda_graph_get_current_capture_graph().__enter__()
        o = empty(*shape)
        _o = without_reference(o)

        def att_func(new_infer_state):
            tmp_o = self._context_attention_kernel(_q, _cache_kv, new_infer_state, layer_weight)
            _o.copy_(tmp_o)

        infer_state.prefill_cuda_graph_add_cpu_runnning_func(func=att_func, after_graph=pre_capture_graph)
        return o


class LlamaTransformerLayerInfer(TransformerLayerInferTpl):
    """``layer_weight``: a number, which stands for the weights of the layer."""

    def __init__(self, layer_num, network_config):
        super().__init__(layer_num, network_config)
        self.embed_dim_ = HIDDEN
        self._bind_func()

    def _bind_func(self):
        self._bind_norm()

    def _bind_norm(self):
        self._att_norm = partial(LlamaTransformerLayerInfer._att_norm, self)
        self._ffn_norm = partial(LlamaTransformerLayerInfer._ffn_norm, self)

    def _context_attention_kernel(self, q, kv, infer_state, layer_weight):
        _k, _v = infer_state.mem_manager.get_att_input_params(layer_index=self.layer_num_)
        return infer_state.prefill_att_state.prefill_att(q=q, k=_k, v=_v)

    def _token_attention_kernel(self, q, infer_state, layer_weight):
        _k, _v = infer_state.mem_manager.get_att_input_params(layer_index=self.layer_num_)
        return infer_state.decode_att_state.decode_att(q=q, k=_k, v=_v)

    def _att_norm(self, input, infer_state, layer_weight):
        return self._matrix("att_norm", input, layer_weight)

    def _ffn_norm(self, input, infer_state, layer_weight):
        return self._matrix("ffn_norm", input, layer_weight)

    def _matrix(self, name, input, layer_weight):
        out = self.alloc_tensor(input.shape, DTYPE)
        gpu.run(name, rowwise(name, layer_weight), out, input)
        return out

    def _get_qkv(self, input, infer_state, layer_weight):
        input = self._tpsp_allgather(input, infer_state)
        q = self._matrix("qkv", input, layer_weight)
        if infer_state.need_dp_prefill_balance:
            q = infer_state._all_to_all_unbalance_get(data=q)
        return q, q

    def _get_o(self, input, infer_state, layer_weight):
        o_tensor = self._matrix("o", input, layer_weight)
        return self._tpsp_reduce(input=o_tensor, infer_state=infer_state)

    def _ffn(self, input, infer_state, layer_weight):
        input = self._tpsp_allgather(input=input, infer_state=infer_state)
        ffn2_out = self._ffn_tp(input=input, infer_state=infer_state, layer_weight=layer_weight)
        return self._tpsp_reduce(input=ffn2_out, infer_state=infer_state)

    def _ffn_tp(self, input, infer_state, layer_weight):
        trouble()
        return self._matrix("ffn", input, layer_weight)

    def overlap_tpsp_token_forward(self, input_embdings, input_embdings1, infer_state, infer_state1, layer_weight):
        input_embdings = self.token_forward(input_embdings, infer_state, layer_weight=layer_weight)
        input_embdings1 = self.token_forward(input_embdings1, infer_state1, layer_weight=layer_weight)
        return input_embdings, input_embdings1

    def overlap_tpsp_context_forward(self, input_embdings, input_embdings1, infer_state, infer_state1, layer_weight):
        input_embdings = self.context_forward(input_embdings, infer_state, layer_weight=layer_weight)
        input_embdings1 = self.context_forward(input_embdings1, infer_state1, layer_weight=layer_weight)
        return input_embdings, input_embdings1


class Qwen3NextTransformerLayerInfer(LlamaTransformerLayerInfer):
    """Most layers have linear attention, whose all_reduce lies outside of all methods that are operators."""

    def __init__(self, layer_num, network_config):
        super().__init__(layer_num, network_config)
        self.is_linear_attention_layer = (layer_num + 1) % network_config["full_attention_interval"] != 0

    def _bind_func(self):
        super()._bind_func()
        self._bind_ffn()

    def _bind_ffn(self):
        self._ffn = partial(LlamaTransformerLayerInfer._ffn, self)

    def context_attention_forward(self, input_embdings, infer_state, layer_weight):
        if not self.is_linear_attention_layer:
            return super().context_attention_forward(input_embdings, infer_state, layer_weight)
        mixed_qkvzba = self._linear_in_proj(input_embdings, layer_weight)
        if cuda.is_current_stream_capturing():
            core_attn_out, z = self._linear_prefill_cuda_graph_wrapper(mixed_qkvzba, infer_state, layer_weight)
        else:
            core_attn_out, z = self._attend_linear(mixed_qkvzba, infer_state)
        gdn_out = self._linear_post(core_attn_out, z, layer_weight)
        if self.tp_world_size_ > 1:
            all_reduce(gdn_out, op=dist.ReduceOp.SUM, group=infer_state.dist_group, async_op=False)
        return gdn_out

    def _attend_linear(self, mixed_qkvzba, infer_state):
        given = {"mixed_qkvzba": mixed_qkvzba, "layer_num": self.layer_num_}
        att_control = AttControl(linear_att_prefill=True, linear_att_prefill_dict=given)
        return infer_state.prefill_att_state1.prefill_att(q=None, k=None, v=None, att_control=att_control)

    def _linear_prefill_cuda_graph_wrapper(self, mixed_qkvzba, infer_state, layer_weight):
        """As ``_context_attention_wrapper_run``."""
        _mixed = without_reference(mixed_qkvzba)
        pre_capture_graph = infer_state.prefill_cuda_graph_get_current_capture_graph()
        pre_capture_graph.__exit__(None, None, None)
        infer_state.prefill_cuda_graph_create_graph_obj()
        infer_state.prefill_cuda_graph_get_current_capture_graph().__enter__()
        o, z = empty(*_mixed.shape), empty(*_mixed.shape)
        _o, _z = without_reference(o), without_reference(z)

        def gdn_prefill_func(new_infer_state):
            tmp_o, tmp_z = self._attend_linear(_mixed, new_infer_state)
            _o.copy_(tmp_o)
            _z.copy_(tmp_z)

        infer_state.prefill_cuda_graph_add_cpu_runnning_func(func=gdn_prefill_func, after_graph=pre_capture_graph)
        return o, z

    def token_attention_forward(self, input_embdings, infer_state, layer_weight):
        if not self.is_linear_attention_layer:
            return super().token_attention_forward(input_embdings, infer_state, layer_weight)
        mixed_qkvzba = self._linear_in_proj(input_embdings, layer_weight)
        given = {"mixed_qkvzba": mixed_qkvzba, "layer_num": self.layer_num_}
        att_control = AttControl(linear_att_decode=True, linear_att_decode_dict=given)
        core_attn_out, z = infer_state.decode_att_state1.decode_att(q=None, k=None, v=None, att_control=att_control)
        gdn_out = self._linear_post(core_attn_out, z, layer_weight)
        if self.tp_world_size_ > 1:
            all_reduce(gdn_out, op=dist.ReduceOp.SUM, group=infer_state.dist_group, async_op=False)
        return gdn_out

    def _linear_in_proj(self, input, layer_weight):
        return self._matrix("linear_in_proj", input, layer_weight)

    def _linear_post(self, core_attn_out, z, layer_weight):
        out = self.alloc_tensor(z.shape, DTYPE)
        gpu.run("linear_post", rowwise("linear_post", layer_weight), out, core_attn_out, z)
        return out


class LlamaPreLayerInfer(BaseLayerInfer):
    def __init__(self, network_config):
        super().__init__()

    def context_forward(self, input_ids, infer_state, layer_weight):
        return self._embed(input_ids, infer_state)

    def token_forward(self, input_ids, infer_state, layer_weight):
        return self._embed(input_ids, infer_state)

    def _embed(self, input_ids, infer_state):
        input_embdings = self.alloc_tensor((input_ids.shape[0], HIDDEN), DTYPE)
        gpu.run("embedding", rowwise("embedding"), input_embdings, input_ids)
        if self.tp_world_size_ > 1:
            all_reduce(input_embdings, op=dist.ReduceOp.SUM, group=infer_state.dist_group, async_op=False)
        return input_embdings

    def overlap_tpsp_token_forward(self, input_ids, input_ids1, infer_state, infer_state1, layer_weight):
        input_embdings = self.token_forward(input_ids=input_ids, infer_state=infer_state, layer_weight=layer_weight)
        input_embdings1 = self.token_forward(input_ids=input_ids1, infer_state=infer_state1, layer_weight=layer_weight)
        return input_embdings, input_embdings1

    def overlap_tpsp_context_forward(self, input_ids, input_ids1, infer_state, infer_state1, layer_weight):
        input_embdings = self.context_forward(input_ids=input_ids, infer_state=infer_state, layer_weight=layer_weight)
        input_embdings1 = self.context_forward(
            input_ids=input_ids1, infer_state=infer_state1, layer_weight=layer_weight
        )
        return input_embdings, input_embdings1


class Deepseek3MTPPreLayerInfer(LlamaPreLayerInfer):
    """A draft's: takes the main model's hidden states, and normalises them in place."""

    def context_forward(self, input_ids, infer_state, layer_weight):
        return self._mtp_context_forward(
            super().context_forward(input_ids, infer_state, layer_weight), infer_state, layer_weight
        )

    def token_forward(self, input_ids, infer_state, layer_weight):
        return self._mtp_token_forward(
            super().token_forward(input_ids, infer_state, layer_weight), infer_state, layer_weight
        )

    def _mtp_context_forward(self, input_embdings, infer_state, layer_weight):
        return self._mtp_token_forward(input_embdings, infer_state, layer_weight)

    def _mtp_token_forward(self, input_embdings, infer_state, layer_weight):
        tgt_embdings = infer_state.mtp_draft_input_hiddens
        assert input_embdings.shape[0] == tgt_embdings.shape[0]
        gpu.run("att_norm", rowwise("att_norm"), tgt_embdings, tgt_embdings)
        made = self.alloc_tensor(input_embdings.shape, DTYPE)
        gpu.run("o", rowwise("o"), made, input_embdings, tgt_embdings)
        return made


class LlamaPostLayerInfer(BaseLayerInfer):
    def __init__(self, network_config):
        super().__init__()

    def _slice_get_last_input(self, input_embdings, infer_state):
        if not infer_state.is_prefill:
            return input_embdings, infer_state.batch_size
        last_input = self.alloc_tensor((infer_state.batch_size, HIDDEN), DTYPE)

        def last_of_each(rows, q_seq_lens):
            ends, made = 0, []
            for length in q_seq_lens:
                ends += length
                made.append(rows[ends - 1])
            return tuple(made)

        gpu.run("copy", last_of_each, last_input, input_embdings, infer_state.b_q_seq_len)
        return last_input, infer_state.batch_size

    def _token_forward(self, input_embdings, infer_state, layer_weight):
        last_input, token_num = self._slice_get_last_input(input_embdings, infer_state)
        return self._lm_head_and_gather(last_input, token_num, layer_weight, infer_state)

    def _lm_head_and_gather(self, hidden, token_num, layer_weight, infer_state):
        logic_batch = empty(*hidden.shape)
        gpu.run("lm_head", rowwise("lm_head"), logic_batch, hidden)
        gather_data = logic_batch
        if self.tp_world_size_ > 1:
            gather_data = self.alloc_tensor(hidden.shape, DTYPE)
            parts = [gather_data, *[empty(*hidden.shape) for _ in range(self.tp_world_size_ - 1)]]
            all_gather(parts, logic_batch, group=infer_state.dist_group, async_op=False)
        ans_logics = self.alloc_tensor(hidden.shape, DTYPE)
        gpu.run("copy", rowwise("copy"), ans_logics, gather_data)
        return ans_logics

    def token_forward(self, input_embdings, infer_state, layer_weight):
        return self._token_forward(input_embdings=input_embdings, infer_state=infer_state, layer_weight=layer_weight)

    def overlap_tpsp_token_forward(self, input_embdings, input_embdings1, infer_state, infer_state1, layer_weight):
        logics = self.token_forward(input_embdings, infer_state, layer_weight=layer_weight)
        logics1 = self.token_forward(input_embdings1, infer_state1, layer_weight=layer_weight)
        return logics, logics1
