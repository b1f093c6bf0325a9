"""Texts for messages."""

import utils


def test_listed_names_the_first_and_counts_the_rest():
    assert utils.listed([]) == ""
    assert utils.listed("abcde", limit=2) == "a, b, and 3 more"
    assert utils.listed("ab", limit=2) == "a, b"


def test_printable_escapes_what_moves_a_terminal():
    assert utils.printable("\x1b[2J\x07\r\n\u202e\udc80") == r"\x1b[2J\x07\r\n\u202e\udc80"
    assert utils.printable("треугольник 三角形 é") == "треугольник 三角形 é"
    assert utils.printable(12) == "12"
    assert utils.printable("a" * 300) == "a" * 200 + "..."
    assert utils.printable("a" * 200) == "a" * 200
