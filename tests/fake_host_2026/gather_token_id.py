"""Kernels that read and write the GPU's table of next tokens, and those that index a batch."""

from .machine import empty, gpu, no_grad, tensor, to_gpu


def gather_token(req_to_next_token_ids, b_req_idx, b_mtp_index):
    output = empty(*b_req_idx.shape)
    gpu.run("gather_token", lambda table, requests, columns: tuple(table[i][j] for i, j in zip(requests, columns)), output,
            req_to_next_token_ids, b_req_idx, b_mtp_index)  # fmt: skip
    return output


def gather_token_prefill_decode_mixed(
    input_ids, req_to_next_token_ids, b_req_idx, b_mtp_index, b_is_decode_req, b_prefill_start_loc
):
    def gather(ids, table, requests, columns, decodes, starts):
        made = list(ids)
        for request, column, decode, start in zip(requests, columns, decodes, starts):
            if decode:
                made[start] = table[request][column]
        return tuple(made)

    gpu.run("gather_token", gather, input_ids, input_ids, req_to_next_token_ids, b_req_idx, b_mtp_index, b_is_decode_req,
            b_prefill_start_loc)  # fmt: skip


@no_grad()
def copy_kv_index_to_req(req_to_token_indexs, b_req_idx, b_seq_len, memindex):
    gpu.run("index")


def init_req_to_token_indexes(
    req_to_token_indexs, b_req_idx, b_seq_len, b_ready_cache_len, b_start_loc, alloc_mem_index, max_q_seq_len
):
    gpu.run("index")


@no_grad()
def scatter_token(next_token_ids, req_to_next_token_ids, b_req_idx, b_mtp_index, b_has_out=None):
    def scatter(tokens, table, requests, columns, has_out):
        new = [list(row) for row in table]
        for token, request, column, has in zip(tokens, requests, columns, has_out):
            if has:
                new[request][column] = token
        return tuple(map(tuple, new))

    has_out = to_gpu(tensor((True,) * next_token_ids.shape[0])) if b_has_out is None else b_has_out
    gpu.run("scatter_token", scatter, req_to_next_token_ids, next_token_ids, req_to_next_token_ids, b_req_idx, b_mtp_index,
            has_out)  # fmt: skip


def mtp_verify(req_to_next_token_ids, b_req_mtp_start_loc, new_next_token_ids, b_req_idx):
    """How many of each request's rows are accepted, and which rows: the first, and those after it while tokens are even."""
    count = new_next_token_ids.shape[0]
    accepted_index, mtp_accept_len = empty(count), empty(b_req_mtp_start_loc.shape[0])

    def accept(tokens, starts):
        made = []
        for start, end in zip(starts, (*starts[1:], len(tokens))):
            going = True
            for row in range(start, end):
                made.append(int(going))
                going = going and tokens[row] % 2 == 0
        return tuple(made)

    def lengths(accepted, starts):
        return tuple(sum(accepted[start:end]) for start, end in zip(starts, (*starts[1:], len(accepted))))

    gpu.run("verify", accept, accepted_index, new_next_token_ids, b_req_mtp_start_loc)
    gpu.run("verify", lengths, mtp_accept_len, accepted_index, b_req_mtp_start_loc)
    return mtp_accept_len, accepted_index


def mtp_scatter_next_token_ids(
    req_to_next_token_ids, b_req_mtp_start_loc, all_next_token_ids, b_req_idx, mtp_accept_len
):
    """Each request's next tokens: those of its last accepted row, from the main model and from every draft."""

    def scatter(table, starts, requests, accepted, *steps):
        new = list(table)
        for start, length in zip(starts, accepted):
            row = start + length - 1
            new[requests[row]] = tuple(tokens[row] for tokens in steps)
        return tuple(new)

    gpu.run("scatter_token", scatter, req_to_next_token_ids, req_to_next_token_ids, b_req_mtp_start_loc, b_req_idx,
            mtp_accept_len, *all_next_token_ids)  # fmt: skip
