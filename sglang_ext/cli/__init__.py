"""The ``sglang-ext`` command line: one module a command.

Exit codes: 0 good, 1 a finding, 2 wrong use.
"""
