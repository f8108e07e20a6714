"""How the command line ends."""

import sys

import pytest

from pipeline import __main__ as main


@pytest.mark.parametrize(
    ("verb", "reason", "says"),
    [
        ("tile", "", "stopped; the same command goes on from here"),
        ("compare", "", "stopped; the same command begins anew"),
        ("train", "nothing is kept yet", "stopped; nothing is kept yet"),
    ],
)
def test_ctrl_c_says_what_is_kept(verb, reason, says, monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt(*filter(None, [reason]))

    monkeypatch.setattr(main, "app", interrupted)
    monkeypatch.setattr(sys, "argv", ["pipeline", verb])
    with pytest.raises(SystemExit, match="130"):
        main.main()
    assert capsys.readouterr().err == f"{says}\n"
