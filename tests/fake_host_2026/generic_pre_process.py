"""Requests become the input of a forward."""

from .batch_objs import ModelInput
from .infer_batch import g_infer_context
from .machine import args, tensor

NOTHING = {"images": [], "audios": []}


def _prefill_input(rows, run_reqs):
    """``rows``: (request's place, tokens, length before, whether it samples, whether it decodes)."""
    places, tokens, ready, has_output, decodes = zip(*rows)
    new = [len(each) for each in tokens]
    lengths = [old + more for old, more in zip(ready, new)]
    starts = [sum(new[:number]) for number in range(len(new))]
    return ModelInput(
        batch_size=len(rows),
        total_token_num=sum(lengths),
        max_q_seq_len=max(new),
        max_kv_seq_len=max(lengths),
        max_cache_len=max(ready),
        prefix_total_token_num=sum(ready),
        input_ids=tensor([each for part in tokens for each in part]),
        mem_indexes_cpu=tensor([0] * sum(new)),
        b_req_idx=tensor(places),
        b_mtp_index=tensor([0] * len(rows)),
        b_seq_len=tensor(lengths),
        b_is_decode_req=tensor(decodes),
        b_ready_cache_len=tensor(ready),
        b_prefill_start_loc=tensor(starts),
        is_prefill=True,
        b_prefill_has_output_cpu=list(has_output),
        multimodal_params=[NOTHING] * len(rows),
    )


def _row_of(req, is_chuncked_mode=True):
    token_ids = req.get_chuncked_input_token_ids() if is_chuncked_mode else req.get_input_token_ids()
    decodes = hasattr(req, "is_decode_req_mixed_in_prefill")
    if decodes:
        del req.is_decode_req_mixed_in_prefill
    return (
        req.req_idx,
        token_ids[req.cur_kv_len :],
        req.cur_kv_len,
        len(token_ids) >= req.get_cur_total_len(),
        decodes,
    )


def prepare_prefill_inputs(req_objs, is_chuncked_mode):
    run_reqs = list(req_objs)
    return _prefill_input([_row_of(req, is_chuncked_mode) for req in run_reqs], run_reqs), run_reqs


def padded_prepare_prefill_inputs(req_objs, dest_batch_size=None):
    """Rows of nobody, where a data-parallel rank has less to do than the others."""
    count = max(1, len(req_objs)) if dest_batch_size is None else dest_batch_size
    padded_req_num = count - len(req_objs)
    rows = [_row_of(req) for req in req_objs]
    rows += [(g_infer_context.req_manager.HOLD_REQUEST_ID, [1], 0, False, False)] * padded_req_num
    return _prefill_input(rows, req_objs), list(req_objs), padded_req_num


def _decode_input(rows):
    """``rows``: (request's place, length, step of speculation)."""
    places, lengths, steps = zip(*rows)
    return ModelInput(
        batch_size=len(rows),
        total_token_num=sum(lengths),
        max_q_seq_len=1,
        max_kv_seq_len=max(lengths),
        input_ids=None,
        mem_indexes_cpu=tensor([0] * len(rows)),
        b_req_idx=tensor(places),
        b_mtp_index=tensor(steps),
        b_seq_len=tensor(lengths),
        b_position_delta=tensor([0] * len(rows)),
        is_prefill=False,
        multimodal_params=[NOTHING] * len(rows),
    )


def prepare_decode_inputs(req_objs):
    """With speculation each request has a row for each step, and is as often in the list of requests."""
    run_reqs = [req for req in req_objs for _ in range(req.mtp_step + 1)]
    rows = []
    for req in req_objs:
        seq_len = req.get_cur_total_len()
        assert req.cur_kv_len == seq_len - 1
        rows += [(req.req_idx, seq_len + step, step) for step in range(req.mtp_step + 1)]
    return _decode_input(rows), run_reqs


def padded_prepare_decode_inputs(req_objs, dest_batch_size=None):
    count = max(1, len(req_objs)) if dest_batch_size is None else dest_batch_size
    padded_req_num = count - len(req_objs)
    run_reqs, rows = [], []
    for req in req_objs:
        run_reqs += [req] * (req.mtp_step + 1)
        rows += [(req.req_idx, req.get_cur_total_len() + step, step) for step in range(req.mtp_step + 1)]
    nobody = g_infer_context.req_manager.HOLD_REQUEST_ID
    rows += [(nobody, 2 + step, step) for _ in range(padded_req_num) for step in range(args.mtp_step + 1)]
    return _decode_input(rows), run_reqs, padded_req_num


def _halves(req_objs):
    middle = -(-len(req_objs) // 2)
    return req_objs[:middle], req_objs[middle:]


def padded_overlap_prepare_prefill_inputs(req_objs):
    first, second = _halves(req_objs)
    return (*padded_prepare_prefill_inputs(first), *padded_prepare_prefill_inputs(second))


def padded_overlap_prepare_decode_inputs(req_objs):
    first, second = _halves(req_objs)
    size = max(1, len(first))
    return (*padded_prepare_decode_inputs(first, size), *padded_prepare_decode_inputs(second, size))


def prepare_mtp_prefill_inputs(model_input, b_next_token_ids, mtp_draft_input_hiddens):
    """A draft's: its hidden states are the main model's, and its tokens one further."""
    import copy

    new_model_input = copy.copy(model_input)
    new_model_input.b_is_decode_req = None
    new_model_input.mtp_draft_input_hiddens = mtp_draft_input_hiddens
    return new_model_input
