"""What a command line says when it refuses its arguments."""

import pytest


def refused(parser, argv, capsys):
    """The one line with which ``parser`` refuses ``argv``; it exits with code 2."""
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(argv)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]
