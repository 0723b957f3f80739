"""Log lines that repeat."""

import logging

from sglang_ext.cache.quiet import LogGate, RepeatFilter


def test_one_line_a_cause_and_a_count_of_the_others():
    gate = LogGate(every_s=3600)
    assert gate.admits("read") == 0
    assert gate.admits("read") is None
    assert gate.admits("write") == 0
    eager = LogGate(every_s=0)
    assert [eager.admits("read"), eager.admits("read")] == [0, 0]


def test_held_back_lines_are_told_with_the_next():
    gate = LogGate(every_s=3600)
    gate.admits("read")
    gate.admits("read")
    gate.admits("read")
    gate._every_s = 0
    assert gate.admits("read") == 2
    assert gate.admits("read") == 0


def test_only_messages_that_begin_so_are_held_back(caplog):
    logger = logging.getLogger("tests.quiet")
    repeats = RepeatFilter("Write page")
    logger.addFilter(repeats)
    try:
        for _ in range(3):
            logger.warning("Write page to storage: %d pages failed.", 3)
            logger.warning("Something else")
    finally:
        logger.removeFilter(repeats)
    said = [record.getMessage() for record in caplog.records]
    assert said.count("Write page to storage: 3 pages failed.") == 1
    assert said.count("Something else") == 3
