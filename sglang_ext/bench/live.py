"""The learned policy at work in the real server, beside what `replay` predicts for it.

A trace is scaled down (`sglang_ext.replay.rehearsal`). What the policy learns from one half of its
sessions becomes the state of a server; a part of the other half is sent to servers with each policy
in turn, one request after another, and each request says when it came, so that hours pass in
minutes. The same requests go through `sglang_ext.replay`, the same state first.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang_ext.bench.live_client import LiveClient, prompts
from sglang_ext.bench.server import ServerProcess, sglang_command
from sglang_ext.cache.folder import overhead_bytes
from sglang_ext.cache.learned_file import write_state
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.store.format import slot_bytes_of
from sglang_ext.cache.store.segments import slots_that_fit
from sglang_ext.errors import BenchError
from sglang_ext.replay.rehearsal import rehearsal
from sglang_ext.replay.run import Row, replay
from sglang_ext.replay.trace import Trace

__all__ = ["POLICIES", "LiveBench", "LiveRow", "bench_live"]

# Called with what is being done, and the requests that are done.
OnStep = Callable[[str, int], None]

POLICIES = ("ext", "lru", "stock")
PREDICTED = ("ext", "lru", "belady")
# How far apart a server and its prediction may be, in each tier.
AGREED = 0.01
# Tokens that the third tier holds in `replay`: all.
_WITHOUT_BOUND = 10**9
_L3_SPARE_BYTES = 256_000_000
# Longest prompt in L1 beside it, and of the live footprint.
_LONGEST, _FOOTPRINT = 1.25, 0.125


@dataclass(frozen=True)
class LiveBench:
    """What to run.

    Args:
        trace: see `sglang_ext.replay.trace`.
        model: folder of the model.
        workdir: for logs, and disk tiers while it runs.
        policies: of the servers, in this order; names out of `POLICIES`.
        requests: sent to each.
        block_tokens: tokens of the trace that become a page.
        page_tokens: of a page of the server.
        l1_tokens: device tier; None: an eighth of what all prompts need, or a quarter more than the
            longest.
        l2_tokens: host tier, with the copies of L1; None: twice L1.
        l3_tokens: disk tier, with the copies of both; None: there is room for all.
        seed: of the starts of sessions, and of prompts.
        window_s: within which sessions start, where the trace is timed by sessions.
    """

    trace: Trace
    model: Path
    workdir: Path
    policies: tuple[str, ...] = POLICIES
    requests: int = 400
    block_tokens: int = 1024
    page_tokens: int = 16
    l1_tokens: int | None = None
    l2_tokens: int | None = None
    l3_tokens: int | None = None
    seed: int = 0
    window_s: float = 10_800.0


@dataclass(frozen=True)
class LiveRow:
    """Hits as shares of the prompts' pages; ``memory_hit`` is L1 and L2 together."""

    policy: str
    source: str  # server or replay
    l1_hit: float
    l2_hit: float
    l3_hit: float

    @property
    def memory_hit(self) -> float:
        """Served without the disk."""
        return self.l1_hit + self.l2_hit

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self),
            "memory_hit": self.memory_hit,
            "hit": self.memory_hit + self.l3_hit,
        }


def bench_live(what: LiveBench, on_step: OnStep) -> dict[str, Any]:
    """Run; blocks for minutes. Nothing of the servers is left behind.

    Returns:
        As documented in docs/bench.md.

    Raises:
        BenchError: a policy is not known, a tier is too small, or a server did not do its part.
        ServerError: a server did not start.
        TraceError: the trace does not fit.
    """
    unknown = [name for name in what.policies if name not in POLICIES]
    if unknown:
        raise BenchError(f"policy {unknown[0]!r} is not known", fix=f"give some of {POLICIES}")
    cut = rehearsal(
        what.trace,
        what.requests,
        block_tokens=what.block_tokens,
        page_tokens=what.page_tokens,
        seed=what.seed,
        window_s=what.window_s,
    )
    live = cut.live
    l1, l2 = _tiers(what, live)
    tiers = (l1, l2, _WITHOUT_BOUND if what.l3_tokens is None else what.l3_tokens)
    on_step(f"learning from {len(cut.earlier):,} requests", 0)
    state = _learned(cut.earlier, tiers)
    rows = [_predicted(live, name, tiers, state) for name in PREDICTED]
    what.workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for policy in what.policies:
        served = _serve(what, policy, live, (l1, l2), state, on_step)
        total = float(live.blocks.sum()) * live.block_tokens
        rows.append(LiveRow(policy, "server", *(tokens / total for tokens in served)))
    return {
        "trace": what.trace.name,
        "seed": what.seed,
        "window_s": what.window_s,
        "requests": len(live),
        "sessions": len(set(live.session.tolist())),
        "span_s": float(live.time_s[-1] - live.time_s[0]),
        "learned_from": len(cut.earlier),
        "block_tokens": what.block_tokens,
        "page_tokens": what.page_tokens,
        "input_tokens": int(live.input_tokens.sum()),
        "footprint_tokens": live.footprint_tokens,
        "ideal_hit": live.ideal_hit,
        "l1_tokens": l1,
        "l2_tokens": l2,
        "l3_tokens": what.l3_tokens,
        "rows": [row.to_json() for row in rows],
        "gap_closed": _gap_closed(rows),
        "findings": _findings(rows),
    }


def _tiers(what: LiveBench, live: Trace) -> tuple[int, int]:
    page, longest = what.page_tokens, int(live.input_tokens.max())
    wanted = max(_LONGEST * longest, _FOOTPRINT * live.footprint_tokens)
    l1 = what.l1_tokens or int(wanted) // page * page
    l2 = what.l2_tokens or 2 * l1
    if l1 < longest + page or l2 < l1:
        raise BenchError(
            f"tiers of {l1:,} and {l2:,} tokens for prompts of up to {longest:,}",
            fix="L1 takes the longest prompt and a page, L2 what L1 holds; or more --block-tokens",
        )
    return l1, l2


def _learned(earlier: Trace, tiers: Sequence[int]) -> bytes:
    """The state of a policy that has seen ``earlier``."""
    policy = Policy()
    _replay(earlier, "ext", tiers, policy)
    return policy.save_learned(float(earlier.time_s[-1]))


def _replay(trace: Trace, name: str, tiers: Sequence[int], policy: Policy) -> Row:
    """As a server that writes through does it, one request at a time."""
    (row,) = replay(
        trace, [name], [], tiers=tiers, inclusive=True, answers="pooled", policy=policy
    ).rows
    return row


def _predicted(live: Trace, name: str, tiers: Sequence[int], state: bytes) -> LiveRow:
    policy = Policy()
    policy.load(state, float(live.time_s[0]))
    row = _replay(live, name, tiers, policy)
    parts = (row.l1_hit or 0.0, row.l2_hit or 0.0, row.l3_hit or 0.0)
    return LiveRow(row.policy, "replay", *parts)


def _serve(
    what: LiveBench,
    policy: str,
    live: Trace,
    tiers: tuple[int, int],
    state: bytes,
    on_step: OnStep,
) -> tuple[int, int, int]:
    """Send all requests to a server of its own; returns tokens by tier."""
    folder = Path(tempfile.mkdtemp(prefix="live-", dir=what.workdir.absolute()))
    try:
        if policy == "ext":
            write_state(folder / "policy.state", state)
        flags = _flags(what, policy, live, tiers, folder)
        on_step(f"{policy}: starting", 0)
        with ServerProcess(
            lambda port: sglang_command(what.model, port, *flags),
            log=what.workdir / f"server-live-{policy}.log",
            health_path="/health_generate",
        ) as server:
            client = LiveClient(server.base_url, _end_token(what.model))
            served, pages = [0, 0, 0], 0
            for place, prompt in enumerate(prompts(live, what.seed)):
                on_step(f"{policy}: requests of {len(live)}:", place + 1)
                found = client.send(live, place, prompt)
                for tier, tokens in enumerate(found):
                    served[tier] += tokens
                pages += int(live.blocks[place]) - sum(found) // live.block_tokens
                client.wait_for_copies(pages, all_of_them=what.l3_tokens is None)
            client.check(policy)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return served[0], served[1], served[2]


def _flags(
    what: LiveBench, policy: str, live: Trace, tiers: tuple[int, int], folder: Path
) -> list[str]:
    config = json.loads((what.model / "config.json").read_text(encoding="utf-8"))
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token_bytes = config["num_hidden_layers"] * 2 * heads * size * 4
    if what.l3_tokens is None:
        l3_bytes = 2 * live.footprint_tokens * token_bytes + _L3_SPARE_BYTES
    else:
        l3_bytes = _disk_bytes(what.l3_tokens // what.page_tokens, what.page_tokens * token_bytes)
    return [
        *("--dtype", "float32", "--sleep-on-idle"),
        *("--page-size", str(what.page_tokens)),
        *("--ext-cache", "--ext-cache-policy", policy),
        # SGLang rounds a host pool down to pages and adds one.
        *("--ext-l2-size", str((tiers[1] - what.page_tokens // 2) * token_bytes)),
        *("--ext-l1-tokens", str(tiers[0])),
        *("--ext-l3-dir", str(folder), "--ext-l3-size", str(l3_bytes)),
        *(() if policy == "stock" else ("--ext-cache-clock", "requests")),
    ]


def _disk_bytes(pages: int, page_bytes: int) -> int:
    """What ``--ext-l3-size`` has to be for a disk tier of so many pages."""
    slot_bytes = slot_bytes_of(page_bytes)
    store_bytes = pages * slot_bytes
    while slots_that_fit(store_bytes, slot_bytes) < pages:
        store_bytes += slot_bytes // 2
    size_bytes = store_bytes
    while size_bytes - overhead_bytes(size_bytes) < store_bytes:
        size_bytes = store_bytes + overhead_bytes(size_bytes)
    return size_bytes


def _end_token(model: Path) -> int:
    ends = json.loads((model / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
    end = ends[0] if isinstance(ends, list) and ends else ends
    if not isinstance(end, int):
        raise BenchError(
            f"{model}/config.json names no eos_token_id, with which answers end",
            fix="give the folder of another model",
        )
    return end


def _by_name(rows: Sequence[LiveRow]) -> dict[tuple[str, str], LiveRow]:
    return {(row.source, row.policy): row for row in rows}


def _gap_closed(rows: Sequence[LiveRow]) -> dict[str, float | None]:
    """How far from LRU to Belady the learned policy came, live and predicted, in memory."""
    found = _by_name(rows)
    best = found["replay", "belady"]
    closed: dict[str, float | None] = {}
    for source in ("server", "replay"):
        ext, lru = found.get((source, "ext")), found.get((source, "lru"))
        for tiers in ("l1_hit", "memory_hit"):
            name = f"{source}_{tiers.removesuffix('_hit')}"
            closed[name] = None
            if ext is None or lru is None:
                continue
            gap = getattr(best, tiers) - getattr(lru, tiers)
            gain = getattr(ext, tiers) - getattr(lru, tiers)
            closed[name] = gain / gap if gap > 0 else None
    return closed


def _findings(rows: Sequence[LiveRow]) -> list[str]:
    """What is not as it has to be, in words."""
    found = _by_name(rows)
    findings = []
    for policy in ("ext", "lru"):
        live, told = found.get(("server", policy)), found["replay", policy]
        if live is None:
            continue
        for tier in ("l1_hit", "l2_hit", "l3_hit"):
            mine, theirs = getattr(live, tier), getattr(told, tier)
            if abs(mine - theirs) > AGREED:
                findings.append(
                    f"{policy}: {tier[:2].upper()} served {mine:.1%}, replay predicts {theirs:.1%}"
                )
    ext, lru = found.get(("server", "ext")), found.get(("server", "lru"))
    if ext is not None and lru is not None:
        for tier in ("l1_hit", "memory_hit"):
            if getattr(ext, tier) < getattr(lru, tier):
                findings.append(
                    f"ext is below lru live: {tier.removesuffix('_hit')} "
                    f"{getattr(ext, tier):.1%} and {getattr(lru, tier):.1%}"
                )
    return findings
