"""What the attention backend really computes and copies: no more than the tokens that are seen."""

import pytest
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from support.attention_world import DIM, Request, World, scattered
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("one_thread")


class Work(TorchDispatchMode):
    """Counts what is really computed: (query row, key) pairs by head, gathered rows, searches."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = self.gathered_tokens = self.searches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "_scaled_dot_product_flash_attention_for_cpu":
            self.pairs += args[0].shape[1] * args[0].shape[2] * args[1].shape[2]
        elif name == "bmm":
            self.pairs += args[0].shape[0] * args[0].shape[1] * args[1].shape[2]
        elif name in ("index_select", "index"):
            self.gathered_tokens += args[2].shape[0] if name == "index_select" else 0
        elif name == "nonzero":
            self.searches += 1
        return func(*args, **(kwargs or {}))


def test_work_is_new_tokens_times_the_keys_they_see():
    requests = [Request(300, 4, 1), Request(50, 1, 2), Request(0, 20, 3)]
    world = World()
    batch = world.batch(requests, range(1, 376), ForwardMode.MIXED)
    with Work() as work:
        world.run(batch, requests)
    # 9 heads; the kernel may score a new token against a later one, and masks it.
    assert work.pairs == 9 * (4 * 304 + 51 + 20 * 20)


def test_a_window_bounds_the_work():
    requests = [Request(600, 1, 1)]
    world = World(window=99)
    batch = world.batch(requests, range(1, 602), ForwardMode.DECODE)
    with Work() as work:
        world.run(batch, requests)
    assert work.pairs == 9 * 100


def test_a_window_bounds_the_work_of_many_new_tokens():
    requests = [Request(300, 640, 1)]
    world = World(window=32)
    batch = world.batch(requests, range(1, 941), ForwardMode.EXTEND)
    with Work() as work:
        world.run(batch, requests)
    # Blocks of 64 rows see themselves and 32 positions; then come sums of values DIM wide.
    assert work.pairs == 9 * 640 * (32 + 64) + 9 * 640 * DIM


def test_consecutive_slots_are_not_copied_and_others_once_a_layer():
    together, apart = [Request(600, 2, 1)], [Request(600, 2, 1)]
    world = World(layers=3, min_run=256)
    batch = world.batch(together, range(1, 603), ForwardMode.EXTEND)
    with Work() as work:
        world.run(batch, together)
    assert (work.gathered_tokens, work.searches) == (0, 1)
    batch = world.batch(apart, scattered(602, 1, 5), ForwardMode.EXTEND)
    with Work() as work:
        world.run(batch, apart)
    assert (work.gathered_tokens, work.searches) == (3 * 2 * 600, 1)
