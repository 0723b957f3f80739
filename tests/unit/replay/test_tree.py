"""The tree of prompts: nodes tile every path, next uses are those of the blocks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.traces import made

from sglang_ext.replay.rankings import block_paths
from sglang_ext.replay.tree import PromptTree, next_uses


@st.composite
def traces(draw, most=25):
    parent, shared, blocks = [], [], []
    for request in range(draw(st.integers(1, most))):
        above = draw(st.integers(-1, request - 1))
        common = draw(st.integers(0, blocks[above])) if above >= 0 else 0
        parent.append(above)
        shared.append(common)
        blocks.append(common + draw(st.integers(0, 5)))
    return made(parent, shared, blocks)


@given(traces())
def test_nodes_tile_every_path(trace):
    tree = PromptTree.of(trace)
    paths = block_paths(trace)
    block_of = {}
    for request, path in enumerate(paths):
        nodes = list(tree.path(tree.leaf[request]))[::-1]
        depth = 0
        for node in nodes:
            assert tree.begin[node] == depth < tree.end[node]
            blocks = path[depth : tree.end[node]].tolist()
            assert block_of.setdefault(node, blocks) == blocks
            depth = tree.end[node]
        assert depth == len(path)
    held = [block for blocks in block_of.values() for block in blocks]
    assert len(held) == len(set(held)) == int((trace.blocks - trace.shared).sum())


@given(traces())
def test_next_uses_are_those_of_the_blocks(trace):
    tree = PromptTree.of(trace)
    order = np.random.default_rng(0).permutation(len(trace))
    paths = [set(path.tolist()) for path in block_paths(trace)]
    uses = next_uses(tree, order)
    for step, request in enumerate(order.tolist()):
        nodes = list(tree.path(tree.leaf[request]))
        for node, use in zip(nodes, uses[step].tolist(), strict=True):
            block = block_paths(trace)[request][tree.begin[node]]
            later = [s for s in range(step + 1, len(order)) if block in paths[order[s]]]
            assert use == (later[0] if later else len(order))


def test_a_prompt_without_blocks_has_no_leaf():
    tree = PromptTree.of(made([-1, -1], [0, 0], [0, 2]))
    assert tree.leaf == [-1, 0]
    assert list(tree.path(-1)) == []
