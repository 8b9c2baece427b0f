"""Several data-parallel ranks: each runs a forward when any of them has something to do, and two microbatches at once."""

from .base_backend import ModeBackend
from .generic_pre_process import (
    padded_overlap_prepare_decode_inputs,
    padded_overlap_prepare_prefill_inputs,
    padded_prepare_decode_inputs,
    padded_prepare_prefill_inputs,
)
from .infer_batch import g_infer_context
from .machine import HIDDEN, cuda, empty, get_env_start_args, gpu, turns


class DPChunkedPrefillBackend(ModeBackend):
    def __init__(self):
        super().__init__()
        assert not get_env_start_args().mtp_mode
        self.prefill = self.prefill_overlap if self.enable_prefill_microbatch_overlap else self.prefill_normal
        self.decode = self.decode_overlap if self.enable_decode_microbatch_overlap else self.decode_normal
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
            dp_prefill_req_nums, dp_decode_req_nums = self._dp_all_gather_prefill_and_decode_req_num(
                prefill_reqs=prefill_reqs, decode_reqs=decode_reqs
            )
            if sum(dp_prefill_req_nums) > 0:
                g_infer_context.get_overlap_stream().wait_stream(cuda.current_stream())
                self.prefill(event_pack=event_pack, prefill_reqs=prefill_reqs)
            elif sum(dp_decode_req_nums) > 0:
                g_infer_context.get_overlap_stream().wait_stream(cuda.current_stream())
                self.decode(event_pack=event_pack, decode_reqs=decode_reqs)
            else:
                event_pack.notify_post_handle_and_wait_pre_post_handle()
                event_pack.notify_forward_and_wait_post_handle()
                event_pack.notify_pre_post_handle()
                turns.idle()

    def prefill_normal(self, event_pack, prefill_reqs):
        model_input, run_reqs, _ = padded_prepare_prefill_inputs(prefill_reqs)
        run_reqs_num = len(run_reqs)
        step = None
        with cuda.stream(g_infer_context.get_overlap_stream()):
            model_output = self.model.forward(model_input)
            if run_reqs_num > 0:
                step = self._sampled(
                    model_output.logits[:run_reqs_num],
                    model_input.b_req_idx[:run_reqs_num],
                    model_input.b_mtp_index[:run_reqs_num],
                    run_reqs,
                    model_input.b_prefill_has_output_cpu[:run_reqs_num],
                )
        self._finished(event_pack, run_reqs, step, is_chuncked_mode=not self.disable_chunked_prefill)

    def decode_normal(self, event_pack, decode_reqs):
        model_input, run_reqs, _padded_req_num = padded_prepare_decode_inputs(req_objs=decode_reqs)
        run_reqs_num = len(run_reqs)
        step = None
        with cuda.stream(g_infer_context.get_overlap_stream()):
            model_output = self.model.forward(model_input)
            if run_reqs_num > 0:
                step = self._sampled(
                    model_output.logits[:run_reqs_num],
                    model_input.b_req_idx[:run_reqs_num],
                    model_input.b_mtp_index[:run_reqs_num],
                    run_reqs,
                )
        self._finished(event_pack, run_reqs, step, is_chuncked_mode=False)

    def prefill_overlap(self, event_pack, prefill_reqs):
        given = padded_overlap_prepare_prefill_inputs(prefill_reqs)
        model_input0, run_reqs0, _, model_input1, run_reqs1, _ = given
        step = None
        with cuda.stream(g_infer_context.get_overlap_stream()):
            model_output0, model_output1 = self.model.microbatch_overlap_prefill(model_input0, model_input1)
            if run_reqs0 + run_reqs1:
                has_out = [
                    *model_input0.b_prefill_has_output_cpu[: len(run_reqs0)],
                    *model_input1.b_prefill_has_output_cpu[: len(run_reqs1)],
                ]
                parts = ((model_output0, model_input0, run_reqs0), (model_output1, model_input1, run_reqs1))
                step = self._sampled(*self._joined(parts), run_reqs0 + run_reqs1, has_out)
        self._finished(event_pack, run_reqs0 + run_reqs1, step, is_chuncked_mode=not self.disable_chunked_prefill)

    def decode_overlap(self, event_pack, decode_reqs):
        given = padded_overlap_prepare_decode_inputs(req_objs=decode_reqs)
        model_input0, run_reqs0, _, model_input1, run_reqs1, _ = given
        step = None
        with cuda.stream(g_infer_context.get_overlap_stream()):
            model_output0, model_output1 = self.model.microbatch_overlap_decode(model_input0, model_input1)
            if run_reqs0 + run_reqs1:
                parts = ((model_output0, model_input0, run_reqs0), (model_output1, model_input1, run_reqs1))
                step = self._sampled(*self._joined(parts), run_reqs0 + run_reqs1)
        self._finished(event_pack, run_reqs0 + run_reqs1, step, is_chuncked_mode=False)

    def _joined(self, parts):
        """Logits, requests and steps of speculation of both microbatches, without the padding's."""
        count = sum(len(run_reqs) for _, _, run_reqs in parts)
        made = [empty(*shape) for shape in ((count, HIDDEN), (count,), (count,))]
        for target, name in zip(made, ("logits", "b_req_idx", "b_mtp_index")):
            given = [(output if name == "logits" else given, len(reqs)) for output, given, reqs in parts]
            views = [getattr(owner, name)[:number] for owner, number in given]
            gpu.run("copy", lambda first, second: (*first, *second), target, *views)
        return made

    def _sampled(self, logits, b_req_idx, b_mtp_index, run_reqs, has_output=None):
        tokens = self._sample_and_scatter_token(
            logits=logits,
            b_req_idx=b_req_idx,
            b_mtp_index=b_mtp_index,
            run_reqs=run_reqs,
            is_prefill=has_output is not None,
            b_prefill_has_output_cpu=has_output,
            mask_func=None,
        )
        sync_event = cuda.Event()
        sync_event.record()
        return (*tokens, sync_event)

    def _finished(self, event_pack, run_reqs, step, is_chuncked_mode):
        """The other phases of a step; with no requests of its own this rank has nothing to handle."""
        if step is not None:
            _, next_token_ids_cpu, next_token_logprobs_cpu, next_token_ranks_cpu, sync_event = step
            event_pack.notify_post_handle_and_wait_pre_post_handle()
            update_packs = self._pre_post_handle(run_reqs, is_chuncked_mode=is_chuncked_mode)
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
        else:
            event_pack.notify_post_handle_and_wait_pre_post_handle()
            event_pack.notify_forward_and_wait_post_handle()
            event_pack.notify_pre_post_handle()
