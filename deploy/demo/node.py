"""Start api_server as one of several "nodes" of a tensor-parallel group that all live on this host.

Real all_reduce on a single GPU: NCCL refuses two ranks on one GPU only when it takes them for one host. Start one
process per node with api_server's usual arguments (--nnodes, --node_rank, --nccl_host, the same --nccl_port, a --port
each) and

    NCCL_HOSTID=node<rank> NCCL_SOCKET_IFNAME=lo GLOO_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 python node.py ...
"""

import runpy
import sys

from lightllm.utils.net_utils import PortLocker


def share_ports_between_nodes() -> None:
    """Each node binds all of its ports once, to find a clash early; the second node on a host would be that clash."""
    PortLocker.lock_port = PortLocker.release_port = lambda self: None


if __name__ == "__main__":
    share_ports_between_nodes()
    sys.argv[0] = "api_server"
    runpy.run_module("lightllm.server.api_server", run_name="__main__", alter_sys=True)
