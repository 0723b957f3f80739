"""One of two ranks that share each decision: a real tree, on a real process group, fed requests.

    python -m support.rank_child RANK FOLDER SEED REQUESTS CLOCK_OFFSET_S

Prints one JSON object: what was evicted, in order, and what is left.
"""

import json
import random
import sys
import time
from array import array
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from torch import distributed

from sglang_ext.cache import install
from sglang_ext.cache.carrier import action
from sglang_ext.cache.settings import TreeSettings
from sglang_ext.cache.tree import ExtRadixCache
from support.tree_driver import Driver, init_params

DEVICE, HOST = 400, 900
# Requests that run at once.
RUNNING = 4


def made(group, state_file):
    """A cache as a scheduler makes it, without memory behind it."""
    params = init_params(1)
    params.token_to_kv_pool_allocator = SimpleNamespace(
        size=DEVICE, device="cpu", page_size=1, available_size=lambda: 0
    )
    params.tp_cache_group = params.attn_tp_cache_group = group
    params.tree_core_backend = install.BACKEND
    install.register()
    settings = TreeSettings(secret=b"s", block_tokens=1, state_file=state_file)
    return ExtRadixCache(params, settings=settings)


def request(rid, tokens, received, session):
    told = {"received": received, **({"session": session} if session else {})}
    hints = SimpleNamespace(actions=[SimpleNamespace(**action(told))])
    return SimpleNamespace(
        rid=rid,
        origin_input_ids=array("q", tokens),
        kv_hints=hints,
        extra_key=None,
        cache_salt=None,
        session=None,
        session_id=None,
        lora_id=None,
        tokenizer=None,
        output_ids=[],
        finished_reason=None,
        finished=lambda: False,
    )


class Rank:
    """A scheduler's calls, in the order of one stream of requests."""

    def __init__(self, cache):
        self.cache = cache
        self.driver = Driver(cache.tree_core)
        self.victims = []

    def begin(self, one):
        tokens = list(one.origin_input_ids)
        self.cache.match_prefix(MatchPrefixParams(key=RadixKey(one.origin_input_ids), req=one))
        self.cache._for(self.cache.requests.get(one.rid), self.driver.insert, tokens)
        self.make_room()

    def end(self, one, kind, output):
        one.output_ids = [0] * output
        one.finished_reason = SimpleNamespace(to_json=lambda: {"type": kind})
        self.cache._finish(one)

    def make_room(self):
        index = self.cache.tree_core.index
        over = index.device_shares.held("") - DEVICE
        if over > 0:
            self.victims.append(self.driver.evict(over)[0])
        over = index.host_shares.held("") - HOST
        if over > 0:
            self.victims.append([-self.driver.evict_host(over)])


def prompts(seed, count):
    """The stream of requests that all ranks hear: prompt, time, session, how it ends."""
    rng = random.Random(seed)
    now, held = 1.7e9, {}
    for _ in range(count):
        now += rng.expovariate(0.3)
        who = rng.randrange(40)
        before = held.get(who, [])
        keep = len(before) if rng.random() < 0.9 else rng.randrange(len(before) + 1)
        tokens = before[:keep] + [rng.randrange(1, 10**6) for _ in range(rng.randrange(1, 9))]
        if len(tokens) > 60:
            tokens = tokens[:3]
        held[who] = tokens
        session = f"{who:032x}" if who % 3 else ""
        yield tokens, now, session, rng.choice(["stop", "length", "abort"]), rng.randrange(200)


def main():
    rank, folder, seed, count, offset = sys.argv[1:]
    real = time.time
    time.time = lambda: real() + float(offset)
    store = distributed.FileStore(str(Path(folder) / "group"), 2)
    distributed.init_process_group(
        "gloo", store=store, rank=int(rank), world_size=2, timeout=timedelta(seconds=60)
    )
    state = Path(folder) / f"{rank}.state"  # each has its own: only the first one's counts
    cache = made(distributed.group.WORLD, str(state))
    known = cache.policy.inspect()["returns"]
    stream, running = Rank(cache), []
    for number, (tokens, now, session, kind, output) in enumerate(prompts(int(seed), int(count))):
        one = request(f"r{number}", tokens, now, session)
        stream.begin(one)
        running.append((one, kind, output))
        if len(running) == RUNNING:
            stream.end(*running.pop(0))
    cache.shutdown()
    sys.stdout.write(
        json.dumps(
            {
                "victims": stream.victims,
                "digest": cache.tree_core.write_back_duplicate_reclaim_digest,
                "counts": dict(cache.tree_core.counts),
                "steps": cache.policy.model.steps,
                "known_at_start": known,
                "trusted": [guard["trusted"] for guard in cache.policy.inspect()["guards"]],
                "lead": [guard["lead_tokens"] for guard in cache.policy.inspect()["guards"]],
                "state": state.exists(),
            }
        )
    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
