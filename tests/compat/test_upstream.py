"""Each symbol of SGLang that is touched is where it was read, and takes what we pass."""

import inspect
import re
import shutil
import subprocess
import sys

import pytest

from sglang_ext.errors import CompatibilityError
from sglang_ext.plugin.table import HOOKS
from sglang_ext.upstream import releases
from sglang_ext.upstream.storage import WEIGHT_UPDATER
from sglang_ext.upstream.symbols import Symbol, check_symbol, resolve
from sglang_ext.upstream.table import SYMBOLS

pytest.importorskip("sglang")


@pytest.mark.parametrize("symbol", SYMBOLS, ids=lambda symbol: symbol.path)
def test_symbol_is_in_place(symbol):
    check_symbol(symbol)


def test_every_hook_is_on_a_listed_symbol():
    listed = {symbol.path for symbol in SYMBOLS}
    assert {hook.path for hook in HOOKS} <= listed


def test_installed_release_is_a_tested_one():
    assert releases.check_release() in releases.TESTED_RELEASES
    releases.check_torch()


def test_a_symbol_that_moved_is_named():
    moved = Symbol("sglang.srt.server_args:ServerArgs.no_such_method", "nothing")
    with pytest.raises(CompatibilityError, match="no_such_method"):
        check_symbol(moved)


def test_a_parameter_that_went_is_named():
    changed = Symbol(
        "sglang.srt.utils.common:build_server_info", "nothing", ("server_args", "colour")
    )
    with pytest.raises(CompatibilityError, match="no longer takes colour"):
        check_symbol(changed)


def test_arguments_that_tell_pages_apart_are_arguments():
    from sglang.srt.server_args import ServerArgs

    from sglang_ext.arguments import PAGE_ARGUMENTS, PAGE_FILES

    assert {*PAGE_ARGUMENTS, *PAGE_FILES} <= set(ServerArgs.__struct_fields__)


def test_every_way_to_change_weights_passes_our_hook():
    updater = resolve(WEIGHT_UPDATER)
    ways = [name for name in vars(updater) if name.startswith("update_weights_from_")]
    assert len(ways) >= 4
    for name in ways:
        body = inspect.getsource(inspect.unwrap(getattr(updater, name)))
        changed = re.search(r"_select_runners|receive_weights|deserialize", body)
        assert changed, name
        assert 0 <= body.find("self._observe_weight_load(") < changed.start(), name


def test_a_page_on_its_way_to_disk_is_locked_until_the_write_returns():
    controller = resolve(
        "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller:HybridCacheController"
    )
    body = inspect.getsource(controller.backup_thread_func)
    assert body.index("self._page_backup") < body.index("ack_backup_queue.put")


def test_the_storage_has_every_method_of_sglangs():
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

    from sglang_ext.cache.storage import PageStorage

    assert not PageStorage.__abstractmethods__
    inherited = {"on_host_pools_registered"}
    for name, method in vars(HiCacheStorage).items():
        if name.startswith("_") or not callable(method) or name in inherited:
            continue
        assert name in vars(PageStorage), name
        expected = list(inspect.signature(method).parameters)
        assert list(inspect.signature(vars(PageStorage)[name]).parameters) == expected, name


@pytest.mark.parametrize(
    "command", [["serve", "--help"], ["serve", "--model-type", "llm", "-h"]], ids=" ".join
)
def test_sglang_serve_lists_our_flags(command):
    program = "from sglang.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.count("Extension for agent workloads.") == 1
    assert "--ext-l3-dir" in done.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="SGLang's helper has to be compiled")
def test_page_keys_are_those_of_sglangs_helper():
    from array import array

    from sglang.srt.mem_cache.cpp_utils.native_hash import get_native_hash
    from sglang.srt.mem_cache.radix_cache import RadixKey

    from sglang_ext.cache.hooks import hash_without_compiler

    try:
        get_native_hash([1], None, 1)
    except RuntimeError as error:
        pytest.skip(f"SGLang's helper cannot be compiled here: {error}")
    for count in (0, 1, 63, 64, 200):
        ids = array("q", (token * 7919 % 49_152 for token in range(count)))
        if count > 100:
            ids[70] = 2**40  # a page of wide ids between narrow ones
        for bigram in (False, True):
            key = RadixKey(ids, is_bigram=bigram, limit=count - 2 if count > 2 else None)
            for prior in (None, bytes(range(32))):
                for page in (None, 1, 16, 64):
                    expected = get_native_hash(key, prior, page)
                    assert hash_without_compiler(None, key, prior, page) == expected
