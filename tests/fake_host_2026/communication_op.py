"""Collectives: the group chooses for each call who moves the data."""

from .machine import HIDDEN, args, dist, empty, gpu, rowwise

FLASHINFER_BYTES, SYMM_MEM_BYTES = 64, 256  # the first moves tensors below its limit, the second those below its own


class FlashInferAllReduce:
    """Returns the sum in another tensor. Its workspace is made on first use, which is a collective of its own."""

    def __init__(self, group, device):
        self.disabled, self.group, self.max_bytes = False, group, FLASHINFER_BYTES
        self._workspace = self._ws_hidden_dim = None

    def _ensure_workspace(self, hidden_dim, dtype):
        if self._workspace is None or self._ws_hidden_dim != hidden_dim:
            self._workspace, self._ws_hidden_dim = empty(args.tp, hidden_dim), hidden_dim
            dist.all_gather([empty(1, hidden_dim)] * args.tp, empty(1, hidden_dim), group=self.group)
        return True

    def should_use(self, inp):
        small = inp.numel() * inp.element_size() < self.max_bytes
        return not self.disabled and small and self._ensure_workspace(inp.shape[1], "bfloat16")

    def all_reduce(self, inp):
        made = empty(*inp.shape)
        gpu.run("all_reduce", rowwise("all_reduce"), made, inp)
        return made


class SymmMemAllreduce:
    """Copies into a buffer that all ranks see, reduces there, and copies back."""

    def __init__(self, group, device, dtype="bfloat16"):
        self.disabled, self.max_size = False, SYMM_MEM_BYTES
        self.buffer = empty(SYMM_MEM_BYTES // (2 * HIDDEN), HIDDEN)

    def should_use(self, inp):
        return not self.disabled and inp.numel() * inp.element_size() < self.max_size

    def all_reduce(self, inp):
        n = inp.shape[0]
        gpu.run("copy", lambda rows: rows, self.buffer, inp)
        gpu.run("all_reduce", rowwise("all_reduce"), self.buffer, self.buffer)
        gpu.run("copy", lambda rows: rows[:n], inp, self.buffer)


class CustomProcessGroup:
    def __init__(self):
        self.symm_mem_reduce = None
        self.flashinfer_reduce = None
        self.dp_world_size = args.tp
        self.device_group = "nccl"
        self.dp_prefill_balance_group = None
        self.autotune_group = "gloo"

    def init_symm_mem_reduce(self):
        self.symm_mem_reduce = SymmMemAllreduce(self.device_group, 0)

    def init_flashinfer_reduce(self):
        self.flashinfer_reduce = FlashInferAllReduce("gloo", 0)

    def all_reduce(self, input_):
        if self.flashinfer_reduce is not None and self.flashinfer_reduce.should_use(input_):
            input_.data = self.flashinfer_reduce.all_reduce(input_)
            return None
        if self.symm_mem_reduce is not None and self.symm_mem_reduce.should_use(input_):
            self.symm_mem_reduce.all_reduce(input_)
            return None
        return dist.all_reduce(input_, group=self.device_group)

    def all_gather_into_tensor(self, output_, input_, async_op=False):
        return dist.all_gather_into_tensor(output_, input_, group=self.device_group, async_op=async_op)


class DistributeGroupManager:
    def __init__(self):
        self.groups = []
        self.ep_buffer = None

    def create_groups(self, group_size):
        for _ in range(group_size):
            group = CustomProcessGroup()
            if not args.disable_symm_mem_allreduce:
                group.init_symm_mem_reduce()
            if not args.disable_flashinfer_allreduce:
                group.init_flashinfer_reduce()
            self.groups.append(group)

    def get_default_group(self):
        return self.groups[0]

    def get_group(self, group_index):
        return self.groups[group_index]

    def clear_deepep_buffer(self):
        pass


def all_reduce(input_, group=None, op=dist.ReduceOp.SUM, async_op=False):
    if _is_single_group(group=group):
        return None
    if isinstance(group, CustomProcessGroup):
        return group.all_reduce(input_)
    return dist.all_reduce(input_, op, group, async_op)


def all_gather_into_tensor(output_, input_, group=None, async_op=False):
    if _is_single_group(group=group):
        output_.copy_(input_)
        return None
    if isinstance(group, CustomProcessGroup):
        return group.all_gather_into_tensor(output_, input_)
    return dist.all_gather_into_tensor(output_, input_, group, async_op)


def all_gather(output_, input_, group=None, async_op=False):
    if _is_single_group(group=group):
        output_[0].copy_(input_)
        return None
    if isinstance(group, CustomProcessGroup):
        return dist.all_gather(output_, input_, group.device_group, async_op)
    return dist.all_gather(output_, input_, group, async_op)


def reduce_scatter_tensor(output, input, op=dist.ReduceOp.SUM, group=None, async_op=False):
    if _is_single_group(group=group):
        output.copy_(input)
        return None
    if isinstance(group, CustomProcessGroup):
        return dist.reduce_scatter_tensor(output, input, op=op, group=group.device_group, async_op=async_op)
    return dist.reduce_scatter_tensor(output, input, op=op, group=group, async_op=async_op)


def broadcast(tensor, src, group=None, async_op=False):
    if _is_single_group(group=group):
        return None
    if isinstance(group, CustomProcessGroup):
        return dist.broadcast(tensor, src=src, group=group.device_group, async_op=async_op)
    return dist.broadcast(tensor, src=src, group=group, async_op=async_op)


def _is_single_group(group):
    if isinstance(group, CustomProcessGroup):
        return group.dp_world_size == 1
    return dist.get_world_size(group=group) == 1


dist_group_manager = DistributeGroupManager()
