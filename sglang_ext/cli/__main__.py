"""``python -m sglang_ext.cli`` is ``sglang-ext``."""

from sglang_ext.cli.main import main

main()
