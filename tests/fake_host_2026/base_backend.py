"""What all backends share: building the model, the two infer threads, reading requests, sampling and its tail."""

from .basemodel import TpPartBaseModel
from .communication_op import all_gather_into_tensor, broadcast, dist_group_manager
from .gather_token_id import mtp_verify, scatter_token
from .generic_post_process import sample
from .infer_batch import InferReqUpdatePack, g_infer_context, g_pin_mem_manager
from .machine import blend, config, empty, get_env_start_args, gpu, on_gpu, others, to_gpu, turns
from .models import Deepseek3MTPModel, get_model
from .overlap_events import OverlapEventManager


class ShmObjsIOBuffer:
    """What the router wants a model process to know."""

    def __init__(self, tail_str=""):
        self._objs = []

    def write_obj(self, obj):
        self._objs.append(obj)

    def is_ready(self):
        return bool(self._objs)

    def read_obj(self):
        return list(self._objs)

    def sub_state(self):
        self._objs.clear()


class ModeBackend:
    def __init__(self):
        self.shm_req_manager = {}
        self.overlap_event_manager = OverlapEventManager()
        self.support_overlap = True
        self.prefill_mask_func = self.decode_mask_func = self.extra_post_req_handle_func = None
        self.pd_prefill_chunked_handle_func = None
        self.enable_decode_microbatch_overlap = get_env_start_args().enable_decode_microbatch_overlap
        self.enable_prefill_microbatch_overlap = get_env_start_args().enable_prefill_microbatch_overlap
        self.classed_req_no_decode = False
        self.classed_req_strict_prefill = True

    def init_model(self, kvargs):
        self.args = get_env_start_args()
        self.run_mode = self.args.run_mode
        self.dp_size = self.args.dp
        self.disable_chunked_prefill = self.args.disable_chunked_prefill
        self.batch_max_tokens = self.args.batch_max_tokens
        self.eos_id = kvargs.get("eos_id", [2])
        self.is_master_in_dp = self.is_master_in_node = True
        two = self.args.enable_decode_microbatch_overlap or self.args.enable_prefill_microbatch_overlap
        dist_group_manager.create_groups(group_size=2 if two else 1)
        model_kvargs = self._model_kvargs(kvargs)
        self.model, self.is_multimodal = get_model(config, model_kvargs)
        self.model: TpPartBaseModel = self.model
        g_infer_context.register(
            backend=self,
            req_manager=self.model.req_manager,
            radix_cache=None,
            shm_req_manager=self.shm_req_manager,
            vocab_size=self.model.vocab_size,
        )
        self.node_broadcast_tensor = on_gpu((0,))
        self.node_nccl_group = "node"
        if self.dp_size > 1:
            self.dp_gather_item_tensor, self.dp_all_gather_tensor = on_gpu((0,)), on_gpu((0, 0))
        self.init_custom()
        self.shm_reqs_io_buffer = ShmObjsIOBuffer()
        if self.args.mtp_mode:
            self.init_mtp_draft_model(kvargs)
        self.profiler = None
        self.infer_loop_thread = turns.Thread(target=self.infer_loop, daemon=True)
        self.infer_loop_thread.start()
        self.infer_loop_thread1 = turns.Thread(target=self.infer_loop, daemon=True)
        self.infer_loop_thread1.start()

    def _model_kvargs(self, kvargs):
        return {
            "run_mode": self.run_mode,
            "weight_dir": self.args.model_dir,
            "max_req_num": kvargs.get("max_req_num", 16),
            "batch_max_tokens": self.args.batch_max_tokens,
            "graph_max_batch_size": self.args.graph_max_batch_size,
            "graph_max_len_in_batch": self.args.graph_max_len_in_batch,
            "disable_cudagraph": self.args.disable_cudagraph,
            "return_all_prompt_logics": False,
        }

    def init_custom(self):
        pass

    def infer_loop(self):
        raise NotImplementedError()

    def init_mtp_draft_model(self, main_kvargs):
        self.mtp_step = self.args.mtp_step
        self.draft_models = []
        for _ in range(self.mtp_step if self.args.mtp_mode == "vanilla_with_att" else 1):
            mtp_model_kvargs = {
                **self._model_kvargs(main_kvargs),
                "main_model": self.model,
                "mtp_previous_draft_models": self.draft_models.copy(),
            }
            self.draft_models.append(Deepseek3MTPModel(mtp_model_kvargs))

    # Requests come in -------------------------------------------------------------------------------------------------

    def _try_read_new_reqs(self):
        """In every round of the loop, with a wait for the GPU, on the default stream."""
        self._try_read_new_reqs_normal()
        if self.profiler is not None:
            self.profiler.multi_thread_helper()

    def _try_read_new_reqs_normal(self):
        if self.is_master_in_node:
            self.node_broadcast_tensor.fill_(1 if self.shm_reqs_io_buffer.is_ready() else 0)
        broadcast(self.node_broadcast_tensor, src=0, group=self.node_nccl_group, async_op=False)
        new_buffer_is_ready = self.node_broadcast_tensor.detach().item()
        if new_buffer_is_ready:
            self._read_reqs_buffer_and_init_reqs()

    def _read_reqs_buffer_and_init_reqs(self):
        cmds = self.shm_reqs_io_buffer.read_obj()
        self.shm_reqs_io_buffer.sub_state()
        init_reqs = []
        for obj in cmds:
            if isinstance(obj, tuple):
                init_reqs.append(obj)
            elif obj in g_infer_context.requests_mapping:  # a command: the request has been aborted
                g_infer_context.requests_mapping[obj].infer_aborted = True
        if init_reqs:
            self._init_reqs(reqs=init_reqs)

    def _init_reqs(self, reqs):
        g_infer_context.add_reqs(reqs)
        return [e[0] for e in reqs]

    def _get_classed_reqs(self, req_ids=None, no_decode=False, strict_prefill=False, recover_paused=False):
        """Requests that end are let go one round later, because a step of theirs may be running."""
        if req_ids is None:
            req_ids = g_infer_context.infer_req_ids
        finished_reqs, prefill_reqs, decode_reqs, prefill_tokens = [], [], [], 0
        for req_obj in [g_infer_context.requests_mapping[request_id] for request_id in req_ids]:
            if req_obj.filter_mark:
                finished_reqs.append(req_obj)
            elif req_obj.infer_aborted or req_obj.finish_status.is_finished():
                if self.support_overlap:
                    req_obj.filter_mark = True
                else:
                    finished_reqs.append(req_obj)
            elif not no_decode and self._decodes(req_obj, strict_prefill):
                decode_reqs.append(req_obj)
            else:
                token_num = req_obj.prefill_need_token_num(is_chuncked_prefill=not self.disable_chunked_prefill)
                if prefill_tokens + token_num <= self.batch_max_tokens:
                    prefill_tokens += token_num
                    prefill_reqs.append(req_obj)
        g_infer_context.filter_reqs(finished_reqs=finished_reqs)
        if self.args.enable_prefill_decode_mixed and prefill_reqs and decode_reqs:
            for decode_req in decode_reqs:
                decode_req.is_decode_req_mixed_in_prefill = True
                prefill_reqs.append(decode_req)
            decode_reqs = []
        return prefill_reqs, decode_reqs

    def _decodes(self, req_obj, strict_prefill):
        is_decode = req_obj.cur_kv_len + 1 == req_obj.get_cur_total_len()
        return is_decode and not (strict_prefill and req_obj.cur_kv_len + 1 == req_obj.shm_req.input_len)

    def _dp_all_gather_prefill_and_decode_req_num(self, prefill_reqs, decode_reqs):
        nums = []
        for reqs, other in ((prefill_reqs, others[0]), (decode_reqs, others[1])):
            self.dp_gather_item_tensor.fill_(len(reqs))
            all_gather_into_tensor(self.dp_all_gather_tensor, self.dp_gather_item_tensor, group=None, async_op=False)
            nums.append([self.dp_all_gather_tensor.cpu().tolist()[0], other])
        return tuple(nums)

    # A step ends ------------------------------------------------------------------------------------------------------

    def _pre_post_handle(self, run_reqs, is_chuncked_mode):
        update_func_objs = []
        for req_obj in run_reqs:
            if is_chuncked_mode:
                req_obj.cur_kv_len = req_obj.get_chuncked_input_token_len()
            else:
                req_obj.cur_kv_len = req_obj.get_cur_total_len()
            if self.is_master_in_dp:
                req_obj.shm_req.shm_cur_kv_len = req_obj.cur_kv_len
            if req_obj.cur_kv_len < req_obj.get_cur_total_len():
                update_func_objs.append(InferReqUpdatePack(req_obj=req_obj, output_len=0))
                continue
            req_obj.cur_output_len += 1
            update_func_objs.append(InferReqUpdatePack(req_obj=req_obj, output_len=req_obj.cur_output_len))
        return update_func_objs

    def _post_handle(
        self,
        run_reqs,
        next_token_ids,
        next_token_logprobs,
        next_token_ranks,
        run_reqs_update_packs,
        extra_post_req_handle_func=None,
        pd_prefill_chunked_handle_func=None,
    ):
        for next_token_id, next_token_logprob, next_token_rank, pack in zip(
            next_token_ids, next_token_logprobs, next_token_ranks, run_reqs_update_packs
        ):
            pack.handle(
                next_token_id=next_token_id,
                next_token_logprob=next_token_logprob,
                next_token_rank=int(next_token_rank),
                eos_ids=self.eos_id,
                is_master_in_dp=self.is_master_in_dp,
                extra_post_req_handle_func=extra_post_req_handle_func,
                pd_prefill_chunked_handle_func=pd_prefill_chunked_handle_func,
            )

    def _verify_mtp_v2(self, new_next_token_ids, b_req_idx, b_req_mtp_start_loc):
        return mtp_verify(
            req_to_next_token_ids=self.model.req_manager.req_sampling_params_manager.req_to_next_token_ids,
            b_req_mtp_start_loc=b_req_mtp_start_loc,
            new_next_token_ids=new_next_token_ids,
            b_req_idx=b_req_idx,
        )

    def _update_mtp_accept_ratio(self, decode_reqs, mtp_accept_len_cpu):
        if self.is_master_in_dp:
            for req, accept_len in zip(decode_reqs, mtp_accept_len_cpu):
                req.update_mtp_accepted_token_num(accept_token_num=accept_len - 1)

    def _gen_argmax_token_ids(self, model_output):
        made = empty(*model_output.logits.shape[:1])
        gpu.run("argmax", lambda rows: tuple(3 + blend("argmax", row) % 997 for row in rows), made, model_output.logits)
        return made

    def _sample_and_scatter_token(
        self, logits, b_req_idx, b_mtp_index, run_reqs, is_prefill, b_prefill_has_output_cpu=None, mask_func=None
    ):
        """Sampling, and what follows it on the GPU: that belongs to the step."""
        if mask_func is not None:
            mask_func(run_reqs, logits)
        next_token_ids, next_token_logprobs = sample(logits, run_reqs, self.eos_id)
        next_token_ranks = self._get_next_token_ranks(logits, next_token_ids)
        b_has_out = None
        if is_prefill:
            b_has_out = to_gpu(
                g_pin_mem_manager.gen_from_list(key="b_has_out", data=b_prefill_has_output_cpu, dtype="bool")
            )
        scatter_token(
            next_token_ids=next_token_ids,
            req_to_next_token_ids=self.model.req_manager.req_sampling_params_manager.req_to_next_token_ids,
            b_req_idx=b_req_idx,
            b_mtp_index=b_mtp_index,
            b_has_out=b_has_out,
        )
        gpu.run("count_tokens")
        copies = self._async_copy_next_token_infos_to_pin_mem(next_token_ids, next_token_logprobs, next_token_ranks)
        return next_token_ids, *copies

    def _get_next_token_ranks(self, logits, next_token_ids):
        if self.args.enable_rl:
            gpu.run("ranks")

    def _async_copy_next_token_infos_to_pin_mem(self, next_token_ids, next_token_logprobs, next_token_ranks):
        next_token_ids_cpu = g_pin_mem_manager.async_copy_from_gpu_tensor("next_token_ids", next_token_ids)
        next_token_logprobs_cpu = g_pin_mem_manager.async_copy_from_gpu_tensor(
            "next_token_logprobs", next_token_logprobs
        )
        next_token_ranks_cpu = g_pin_mem_manager.get_const_cpu_tensor(
            "next_token_ranks", next_token_ids.shape, -1, "int32"
        )
        return next_token_ids_cpu, next_token_logprobs_cpu, next_token_ranks_cpu
