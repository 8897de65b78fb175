"""Text for a shell: what it reads is what was meant, and a terminal sees only text."""

from __future__ import annotations

import subprocess

import pytest

from sandboxd.cli.shell import comment, fed, quoted


@pytest.mark.parametrize(
    "text", ["", "plain", "a b", "it's", "$HOME `x` \\n", "\x1b[2J", "ä→", "a\nb", "100%", "\\0101"]
)
def test_a_shell_reads_what_was_meant_and_a_terminal_sees_only_text(text: str) -> None:
    word = quoted(text)
    assert word.isascii() and word.isprintable()
    said = subprocess.run(["sh", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert said.stdout == text.encode()


@pytest.mark.parametrize("text", ["a -> b", "a\nb", "\x1b[2J", "ä"])
def test_a_comment_is_one_line_of_ascii(text: str) -> None:
    assert comment(text).isascii() and comment(text).isprintable()


def test_a_here_document_ends_with_no_line_of_it() -> None:
    script = "\n".join(fed("cat", ["EOF", "$HOME `x`", "EOF2"]))
    said = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True)
    assert said.stdout == "EOF\n$HOME `x`\nEOF2\n"
