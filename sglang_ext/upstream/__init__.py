"""Every SGLang symbol that sglang-ext touches, what it relies on, and the releases tested.

The tables are data: nothing of SGLang is imported until `symbols.check_symbol` is asked to. A
compat test and ``sglang-ext doctor`` check each row. A room has its rows in a module of its own,
and `table` puts them together.
"""
