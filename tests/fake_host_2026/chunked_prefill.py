"""The usual backend: the infer loop, and steps of all kinds but those of several data-parallel ranks."""

from .base_backend import ModeBackend
from .gather_token_id import mtp_scatter_next_token_ids
from .generic_post_process import sample
from .generic_pre_process import prepare_decode_inputs, prepare_mtp_prefill_inputs, prepare_prefill_inputs
from .infer_batch import g_infer_context, g_pin_mem_manager
from .machine import cuda, get_env_start_args, gpu, to_gpu, turns


class ChunkedPrefillBackend(ModeBackend):
    def __init__(self):
        super().__init__()
        mtp_mode = get_env_start_args().mtp_mode
        if mtp_mode:
            self.prefill = self.prefill_mtp
            self.decode = self.decode_mtp
            self.is_mtp_eagle = mtp_mode == "eagle_with_att"
            self.num_mtp_models = 1 if self.is_mtp_eagle else get_env_start_args().mtp_step
            self._draft_decode_func = self._draft_decode_eagle if self.is_mtp_eagle else self._draft_decode_vanilla
        else:
            self.prefill = self.prefill_normal
            self.decode = self.decode_normal
        self.classed_req_strict_prefill = False

    def infer_loop(self):
        cuda.set_device(0)
        while True:
            event_pack = self.overlap_event_manager.get_overlap_event_pack()
            if not self.support_overlap:
                event_pack._close_overlap()
            event_pack.wait_to_forward()
            self._try_read_new_reqs()
            prefill_reqs, decode_reqs = self._get_classed_reqs(
                no_decode=self.classed_req_no_decode, strict_prefill=self.classed_req_strict_prefill
            )
            if prefill_reqs:
                g_infer_context.get_overlap_stream().wait_stream(cuda.current_stream())
                self.prefill(event_pack=event_pack, prefill_reqs=prefill_reqs)
            elif decode_reqs:
                g_infer_context.get_overlap_stream().wait_stream(cuda.current_stream())
                self.decode(event_pack=event_pack, decode_reqs=decode_reqs)
            else:
                event_pack.notify_post_handle_and_wait_pre_post_handle()
                event_pack.notify_forward_and_wait_post_handle()
                event_pack.notify_pre_post_handle()
                turns.idle()

    def prefill_normal(self, event_pack, prefill_reqs):
        model_input, run_reqs = prepare_prefill_inputs(prefill_reqs, is_chuncked_mode=not self.disable_chunked_prefill)
        with cuda.stream(g_infer_context.get_overlap_stream()):
            model_output = self.model.forward(model_input)
            _, next_token_ids_cpu, next_token_logprobs_cpu, next_token_ranks_cpu = self._sample_and_scatter_token(
                logits=model_output.logits,
                b_req_idx=model_input.b_req_idx,
                b_mtp_index=model_input.b_mtp_index,
                run_reqs=run_reqs,
                is_prefill=True,
                b_prefill_has_output_cpu=model_input.b_prefill_has_output_cpu,
                mask_func=self.prefill_mask_func,
            )
            sync_event = cuda.Event()
            sync_event.record()
        event_pack.notify_post_handle_and_wait_pre_post_handle()
        update_packs = self._pre_post_handle(run_reqs, is_chuncked_mode=not self.disable_chunked_prefill)
        event_pack.notify_forward_and_wait_post_handle()
        sync_event.synchronize()
        self._post_handle(
            run_reqs=run_reqs,
            next_token_ids=next_token_ids_cpu,
            next_token_logprobs=next_token_logprobs_cpu,
            next_token_ranks=next_token_ranks_cpu,
            run_reqs_update_packs=update_packs,
            extra_post_req_handle_func=self.extra_post_req_handle_func,
            pd_prefill_chunked_handle_func=self.pd_prefill_chunked_handle_func,
        )
        event_pack.notify_pre_post_handle()

    def decode_normal(self, event_pack, decode_reqs):
        model_input, run_reqs = prepare_decode_inputs(decode_reqs)
        with cuda.stream(g_infer_context.get_overlap_stream()):
            model_output = self.model.forward(model_input)
            _, next_token_ids_cpu, next_token_logprobs_cpu, next_token_ranks_cpu = self._sample_and_scatter_token(
                logits=model_output.logits,
                b_req_idx=model_input.b_req_idx,
                b_mtp_index=model_input.b_mtp_index,
                run_reqs=run_reqs,
                is_prefill=False,
                mask_func=self.decode_mask_func,
            )
            sync_event = cuda.Event()
            sync_event.record()
        event_pack.notify_post_handle_and_wait_pre_post_handle()
        update_packs = self._pre_post_handle(run_reqs, is_chuncked_mode=False)
        event_pack.notify_forward_and_wait_post_handle()
        sync_event.synchronize()
        self._post_handle(
            run_reqs=run_reqs,
            next_token_ids=next_token_ids_cpu,
            next_token_logprobs=next_token_logprobs_cpu,
            next_token_ranks=next_token_ranks_cpu,
            run_reqs_update_packs=update_packs,
            extra_post_req_handle_func=self.extra_post_req_handle_func,
        )
        event_pack.notify_pre_post_handle()

    # Speculation: drafts run after sampling, and before the step's end ------------------------------------------------

    def prefill_mtp(self, event_pack, prefill_reqs):
        model_input, run_reqs = prepare_prefill_inputs(prefill_reqs, is_chuncked_mode=not self.disable_chunked_prefill)
        with cuda.stream(g_infer_context.get_overlap_stream()):
            model_output = self.model.forward(model_input)
            next_token_ids, next_token_ids_cpu, next_token_logprobs_cpu, next_token_ranks_cpu = (
                self._sample_and_scatter_token(
                    logits=model_output.logits,
                    b_req_idx=model_input.b_req_idx,
                    b_mtp_index=model_input.b_mtp_index,
                    run_reqs=run_reqs,
                    is_prefill=True,
                    b_prefill_has_output_cpu=model_input.b_prefill_has_output_cpu,
                    mask_func=self.prefill_mask_func,
                )
            )
            self._draft_prefill_forward(
                model_input=model_input, model_output=model_output, next_token_ids=next_token_ids
            )
            sync_event = cuda.Event()
            sync_event.record()
        event_pack.notify_post_handle_and_wait_pre_post_handle()
        update_packs = self._pre_post_handle(run_reqs, is_chuncked_mode=not self.disable_chunked_prefill)
        event_pack.notify_forward_and_wait_post_handle()
        sync_event.synchronize()
        self._post_handle(
            run_reqs=run_reqs,
            next_token_ids=next_token_ids_cpu,
            next_token_logprobs=next_token_logprobs_cpu,
            next_token_ranks=next_token_ranks_cpu,
            run_reqs_update_packs=update_packs,
        )
        event_pack.notify_pre_post_handle()

    def decode_mtp(self, event_pack, decode_reqs):
        model_input, run_reqs = prepare_decode_inputs(decode_reqs)
        with cuda.stream(g_infer_context.get_overlap_stream()):
            b_mtp_index_cpu = model_input.b_mtp_index
            model_output = self.model.forward(model_input)
            next_token_ids, next_token_logprobs = sample(model_output.logits, run_reqs, self.eos_id)
            next_token_ranks = self._get_next_token_ranks(model_output.logits, next_token_ids)
            starts = [index for index, mtp_index in enumerate(b_mtp_index_cpu) if mtp_index == 0]
            b_req_mtp_start_loc = to_gpu(
                g_pin_mem_manager.gen_from_list(key="b_req_mtp_start_loc", data=starts, dtype="int32")
            )
            mtp_accept_len, accepted_index = self._verify_mtp_v2(
                new_next_token_ids=next_token_ids,
                b_req_idx=model_input.b_req_idx,
                b_req_mtp_start_loc=b_req_mtp_start_loc,
            )
            accepted_index_cpu = g_pin_mem_manager.async_copy_from_gpu_tensor("accepted_index", accepted_index)
            mtp_accept_len_cpu = g_pin_mem_manager.async_copy_from_gpu_tensor("mtp_accept_len", mtp_accept_len)
            verify_event = cuda.Event()
            verify_event.record()
            next_token_ids_cpu, next_token_logprobs_cpu, next_token_ranks_cpu = (
                self._async_copy_next_token_infos_to_pin_mem(next_token_ids, next_token_logprobs, next_token_ranks)
            )
            self._draft_decode_func(
                main_model_input=model_input,
                main_model_output=model_output,
                next_token_ids=next_token_ids,
                mtp_accept_len=mtp_accept_len,
                b_req_mtp_start_loc=b_req_mtp_start_loc,
            )
            gpu.run("count_tokens")
            sync_event = cuda.Event()
            sync_event.record()
        event_pack.notify_post_handle_and_wait_pre_post_handle()
        verify_event.synchronize()
        accepted = [row for row, each in enumerate(accepted_index_cpu) if each == 1]
        verify_ok_reqs = [run_reqs[row] for row in accepted]
        update_packs = self._pre_post_handle(verify_ok_reqs, is_chuncked_mode=False)
        event_pack.notify_forward_and_wait_post_handle()
        sync_event.synchronize()
        self._update_mtp_accept_ratio(decode_reqs=decode_reqs, mtp_accept_len_cpu=mtp_accept_len_cpu)
        self._post_handle(
            run_reqs=verify_ok_reqs,
            next_token_ids=[next_token_ids_cpu.tolist()[row] for row in accepted],
            next_token_logprobs=[next_token_logprobs_cpu.tolist()[row] for row in accepted],
            next_token_ranks=[next_token_ranks_cpu.tolist()[row] for row in accepted],
            run_reqs_update_packs=update_packs,
            extra_post_req_handle_func=self.extra_post_req_handle_func,
        )
        event_pack.notify_pre_post_handle()

    def _draft_prefill_forward(self, model_input, model_output, next_token_ids):
        draft_model_input, draft_model_output = model_input, model_output
        draft_next_token_ids_gpu = next_token_ids
        for draft_model_idx in range(self.num_mtp_models):
            draft_model_input = prepare_mtp_prefill_inputs(
                model_input=draft_model_input,
                b_next_token_ids=draft_next_token_ids_gpu,
                mtp_draft_input_hiddens=draft_model_output.mtp_main_output_hiddens,
            )
            draft_model_output = self.draft_models[draft_model_idx].forward(draft_model_input)
            draft_next_token_ids_gpu = self._gen_argmax_token_ids(draft_model_output)

    def _draft_decode_vanilla(
        self, main_model_input, main_model_output, next_token_ids, mtp_accept_len, b_req_mtp_start_loc
    ):
        draft_model_input, draft_model_output = main_model_input, main_model_output
        all_next_token_ids = [next_token_ids]
        for draft_model_idx in range(self.mtp_step):
            draft_model_input.input_ids = all_next_token_ids[-1]
            draft_model_input.mtp_draft_input_hiddens = draft_model_output.mtp_main_output_hiddens
            draft_model_output = self.draft_models[draft_model_idx].forward(draft_model_input)
            all_next_token_ids.append(self._gen_argmax_token_ids(draft_model_output))
        self._scatter(main_model_input, all_next_token_ids, b_req_mtp_start_loc, mtp_accept_len)

    def _draft_decode_eagle(
        self, main_model_input, main_model_output, next_token_ids, mtp_accept_len, b_req_mtp_start_loc
    ):
        """One draft again and again: its input is the main model's, changed in place."""
        draft_model_input, draft_model_output = main_model_input, main_model_output
        all_next_token_ids = [next_token_ids]
        for _step in range(self.mtp_step):
            draft_model_input.input_ids = all_next_token_ids[-1]
            draft_model_input.mtp_draft_input_hiddens = draft_model_output.mtp_main_output_hiddens
            draft_model_output = self.draft_models[_step % self.num_mtp_models].forward(draft_model_input)
            all_next_token_ids.append(self._gen_argmax_token_ids(draft_model_output))
            b_seq_len = draft_model_input.b_seq_len
            gpu.run("add", lambda lengths: tuple(each + 1 for each in lengths), b_seq_len, b_seq_len)
            draft_model_input.max_kv_seq_len += 1
        self._scatter(main_model_input, all_next_token_ids, b_req_mtp_start_loc, mtp_accept_len)

    def _scatter(self, main_model_input, all_next_token_ids, b_req_mtp_start_loc, mtp_accept_len):
        mtp_scatter_next_token_ids(
            req_to_next_token_ids=self.model.req_manager.req_sampling_params_manager.req_to_next_token_ids,
            b_req_mtp_start_loc=b_req_mtp_start_loc,
            all_next_token_ids=all_next_token_ids,
            b_req_idx=main_model_input.b_req_idx,
            mtp_accept_len=mtp_accept_len,
        )
