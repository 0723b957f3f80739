"""What this server's pages are: read from SGLang's records and host pools, as plain values.

`namespace` makes digests of it. Anything that changes what the bytes of a page mean, or what they
would be, has to be here; what does not must not be, or a restarted server finds nothing.
"""

import logging
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sglang_ext.cache.disk_tier import KV
from sglang_ext.cache.placement import Ranks
from sglang_ext.cache.weights import contents_digest, find_model, weights_fingerprint
from sglang_ext.errors import ModelError

__all__ = ["pool_identity", "rank_identity", "ranks_of", "updated_weights"]

logger = logging.getLogger(__name__)

# The load format that takes the weights from a server that runs, not from the model's files.
_FROM_ANOTHER_SERVER = "remote_instance"


def ranks_of(storage_config: Any) -> Ranks:
    """Where this process stands; SGLang's record of storage names its neighbours only."""
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    # With data-parallel attention SGLang numbers its groups like replicas, within one group.
    replicas = parallel.dp_size if parallel.attn_dp_size == 1 else 1
    return Ranks(
        replica=(parallel.dp_rank or 0) if replicas > 1 else 0,
        replicas=replicas,
        pp_rank=storage_config.pp_rank,
        pp_size=storage_config.pp_size,
        tp_rank=parallel.tp_rank,
        tp_size=parallel.tp_size,
        sharers=storage_config.tp_size if storage_config.is_mla_model else 1,
    )


def rank_identity(storage_config: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What all pages of this rank have in common.

    Args:
        storage_config: SGLang's record of storage.
        asked: ``session``, ``model``, ``revision``, ``draft_model``, ``draft_revision``,
            ``arguments`` and ``files``, as `sglang_ext.arguments` read them.
    """
    session = asked["session"]
    identity: dict[str, Any] = {
        "sglang": version("sglang"),
        "weights": _weights(asked["model"], asked.get("revision"), session),
        "arguments": dict(asked["arguments"]),
        # A file that was changed has its old name.
        "files": {
            name: [_contents(path, None, session, contents_digest) for path in paths]
            for name, paths in asked.get("files", {}).items()
        },
        "pp": [storage_config.pp_rank, storage_config.pp_size],
        "cp": [storage_config.attn_cp_rank, storage_config.attn_cp_size],
        "dcp": [storage_config.dcp_rank, storage_config.dcp_size],
        # Ranks of an MLA model hold the same pages.
        "tp": [
            0 if storage_config.is_mla_model else storage_config.tp_rank,
            storage_config.tp_size,
        ],
    }
    if asked.get("draft_model"):
        identity["draft"] = _weights(asked["draft_model"], asked.get("draft_revision"), session)
    if asked["arguments"].get("load_format") == _FROM_ANOTHER_SERVER:
        identity["session"] = session  # its weights may have been changed since they were loaded
    return identity


def updated_weights(session: str, updates: int) -> str:
    """Stands for weights that were changed while the server ran, so that no files tell of them.

    The same in all processes of a server, and never the same again.
    """
    return f"updated {session} {updates}"


def _weights(name: str, revision: str | None, session: str) -> str:
    return _contents(name, revision, session, weights_fingerprint)


def _contents(name: str, revision: str | None, session: str, digest: Callable[[Path], str]) -> str:
    """What a path holds; something of this start alone where there are no files to look at."""
    try:
        path = find_model(name, revision)
        if path is not None:
            return digest(path)
        reason = "its files are not on this machine"
    except ModelError as error:
        reason = str(error)
    logger.warning(
        "Disk tier: cannot tell what %s holds (%s), so pages are of use to this server until it "
        "ends and not to the next one; give a path on this machine",
        name,
        reason,
    )
    return f"unknown {session}"


def pool_identity(
    name: str, pool: Any, pieces: list[int], *, shared: bool, tp_rank: int
) -> dict[str, Any]:
    """What tells the pages of a host pool from those of another.

    Args:
        name: SGLang's name of the pool.
        pool: the host pool.
        pieces: lengths of the pieces of one of its pages.
        shared: whether ranks share their pages (MLA).
        tp_rank: of this process.
    """
    identity: dict[str, Any] = {
        "name": name,
        "class": type(pool).__name__,
        "layout": str(getattr(pool, "layout", None)),
        "dtype": str(getattr(pool, "dtype", None)),
        "format": getattr(pool, "storage_format_tag", None),
        "page_tokens": int(getattr(pool, "page_size", 1) or 1),
        "layers": [int(getattr(pool, end, 0) or 0) for end in ("start_layer", "end_layer")],
        "pieces": pieces,
    }
    if shared and _is_sharded(name, pool):
        # The ranks have a part each; the store is the first one's, so the others find nothing.
        identity["tp_rank"] = tp_rank
    return identity


def _is_sharded(name: str, pool: Any) -> bool:
    """Whether a pool beside replicated keys and values is itself split over the ranks.

    Source: ``HybridCacheController.should_backup``, release 0.5.23.
    """
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

    return name != KV and (name == "mamba" or isinstance(pool, MHATokenToKVPoolHost))
