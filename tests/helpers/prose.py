"""Finds British spelling, numbers with spaces and unclear words in the text of the repository.

    python tests/helpers/prose.py [paths]

prints each finding with its file and line, and the number of findings per folder. Without paths
it reads the whole repository. Of Python files it reads comments and strings, of Markdown files all
but code, of C++ and of configuration files comments and messages, and of HTML templates what a
reader sees, and their scripts' comments and messages. The spelling of names is checked too.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = (".github", "configs", "docs", "efficientad_jax", "experiments", "tests")
SUFFIXES = {".cc", ".cfg", ".html", ".jinja", ".md", ".py", ".toml", ".yaml", ".yml"}

# Text that may break a rule: a file, and words on the line. Each with its reason.
EXCEPTIONS = [
    # The rules themselves, and texts that break them on purpose.
    ("tests/helpers/prose.py", ""),
    ("tests/test_prose.py", ""),
]

_END = r"(?=\s*(?:$|[.,;:)|]|(?:and|are|at|for|from|in|is|of|on|or|than|to|was|when|while|with)\b))"
_UNITS = r"(?:\w+s|[kMGT]i?B|[kMGT]?FLOP|…|\d)"
WORDS = [
    (r"(?<![\w.,])[1-9]\d{0,2}(?:[ \u00a0\u2009\u202f]\d{3})+(?![\w]|[.,]\d)", "write 70,000"),
    (r"\banew\b", "write 'again'"),
    (r"\btold\b", "write 'reported' or 'said'"),
    (r"\b(?:go|goes|going|gone|went)\s+on\b", "write 'resume' or 'continue'"),
    (r"\bbeside\b", "write 'next to' or 'with'"),
    (r"(?<!stand )(?<!stands )(?<!each )\balone\b", "write 'only'"),
    (r"\blest\b", "write 'so that ... not'"),
    (r"\b(?:where|there)of\b", "write 'of which' or 'of it'"),
    (r"\bof (?:its|their) own accord\b", "write 'by itself'"),
    (rf"{_UNITS}\s+a\s+second\b{_END}", "write 'per second'"),
]
_SENTENCE_START = r"(?:^[\s#>*|-]*|[.!?:][\"')*_]*\s+|\|\s*)"
_RULES = [
    *((re.compile(pattern, re.MULTILINE | re.IGNORECASE), advice) for pattern, advice in WORDS),
    (
        re.compile(rf"{_SENTENCE_START}(?:What|Of\s+which)\b(?![^.|]*\?)", re.MULTILINE),
        "begin with the subject",
    ),
]
# To leave somebody alone is not to leave only somebody.
_LEFT_ALONE = re.compile(r"\b(?:leaves?|left|let|leaving)\b[^.]{0,40}$")


class Finding(NamedTuple):
    """A text that breaks a rule; `path` is below the repository, `line` counts from 1."""

    path: str
    line: int
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text!r}: {self.advice}"


class Passage(NamedTuple):
    """Prose of some lines of a file, from `first` to `last`."""

    first: int
    last: int
    text: str


def _without_code(text: str) -> str:
    """Blanks what stands in backticks, addresses and links' targets; keeps the line breaks."""
    return re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", lambda m: "\n" * m[0].count("\n"), text)


def _comments(lines: list[str], mark: str) -> Iterator[Passage]:
    """Comments from `mark` to the end of the line, those on successive lines as one passage."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        code, found, comment = line.partition(mark)
        if block and (not found or code.strip()):
            yield Passage(number - len(block), number - 1, "\n".join(block))
            block = []
        if found and code.strip():
            yield Passage(number, number, comment)
        elif found:
            block.append(comment)


def _defined_name(node: ast.AST) -> str | None:
    """The name that a node of Python's syntax tree gives to something."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    return node.arg if isinstance(node, ast.arg) else None


def _python(source: str) -> Iterator[Passage]:
    """Comments, strings of more than one word, and defined names, each `_` as a blank."""
    lines = [""] * source.count("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = token.line[:column].replace("#", " ") + token.string
    yield from _comments(lines, "#")
    parts: set[ast.AST] = set()  # of f-strings, and the shapes of arrays in annotations
    for node in ast.walk(ast.parse(source)):
        if name := _defined_name(node):
            yield Passage(node.lineno, node.lineno, name.replace("_", " ").strip())
        elif isinstance(node, ast.Subscript):
            parts.update(ast.iter_child_nodes(node.slice))
        elif isinstance(node, ast.JoinedStr):
            parts.update(node.values)
            values = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
            yield Passage(node.lineno, node.end_lineno or 0, "".join(map(str, values)))
        elif isinstance(node, ast.Constant) and node not in parts:
            text = node.value if isinstance(node.value, str) else ""
            if " " in text.strip():
                yield Passage(node.lineno, node.end_lineno or 0, text)


def _markdown(source: str) -> Iterator[Passage]:
    """Everything outside of fences, and the comments inside."""
    lines, code, fenced = source.splitlines(), [], False
    for i, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            lines[i] = ""
        elif fenced:
            _, _, comment = line.partition("# ")
            code.append(Passage(i + 1, i + 1, comment))
            lines[i] = ""
    yield from code
    yield Passage(1, len(lines), "\n".join(lines))


def _scripts(source: str) -> Iterator[Passage]:
    """Comments and strings of C++ or JavaScript."""
    pattern = r'"(?:[^"\\\n]|\\.)*"|//[^\n]*(?:\n[ \t]*//[^\n]*)*|/\*.*?\*/'
    for match in re.finditer(pattern, source, re.DOTALL):
        first = source.count("\n", 0, match.start()) + 1
        if match[0][0] != '"':
            text = re.sub(r"(?m)^\s*//|^\s*/?\*+/?|\*/$", "", match[0])
        elif " " in match[0].strip():
            text = match[0].strip('"')
        else:
            continue
        yield Passage(first, first + match[0].count("\n"), text)


def _html(source: str) -> Iterator[Passage]:
    """What is between tags, some attributes, and comments and strings of scripts."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    for match in re.finditer(r"<script[^>]*>(.*?)</script>", source, re.DOTALL):
        first = source.count("\n", 0, match.start(1))
        for passage in _scripts(match[1]):
            yield Passage(passage.first + first, passage.last + first, passage.text)
    text = re.sub(r"<(script|style)\b.*?</\1>", blank, source, flags=re.DOTALL)
    text = re.sub(r"{%.*?%}", blank, text, flags=re.DOTALL)
    text = re.sub(r"{{.*?}}", "…", text, flags=re.DOTALL)
    for match in re.finditer(r'\b(?:alt|aria-label|content|placeholder|title)="([^"]*)"', text):
        first = text.count("\n", 0, match.start(1)) + 1
        yield Passage(first, first + match[1].count("\n"), match[1])
    text = re.sub(r"<[^>]*>", blank, text)
    yield Passage(1, text.count("\n") + 1, text)


def passages(path: Path) -> Iterator[Passage]:
    """The prose of a file."""
    source = path.read_text()
    if path.suffix == ".py":
        yield from _python(source)
    elif path.suffix == ".md":
        yield from _markdown(source)
    elif path.suffix == ".cc":
        yield from _scripts(source)
    elif path.suffix in {".html", ".jinja"}:
        yield from _html(source)
    else:
        yield from _comments([line if "#" in line else "" for line in source.splitlines()], "#")


def _line_of(passage: Passage, position: int, words: str, lines: list[str]) -> int:
    """The line of some words of a passage; strings that are joined have fewer line breaks."""
    counted = passage.first + passage.text.count("\n", 0, position)
    word = words.split()[0]
    numbers = [counted, *range(passage.first, passage.last + 1)]
    return next((n for n in numbers if n <= len(lines) and word in lines[n - 1]), counted)


def _unclear(path: Path, name: str) -> Iterator[Finding]:
    lines = path.read_text().splitlines()
    for passage in passages(path):
        text = _without_code(passage.text)
        passage = passage._replace(text=text)
        for pattern, advice in _RULES:
            for match in pattern.finditer(text):
                if match[0].lower() == "alone" and _LEFT_ALONE.search(text[: match.start()]):
                    continue
                words = " ".join(match[0].strip(" \n#>*|-.!?:\"')_").split())
                position = match.end() - len(match[0].lstrip())
                yield Finding(name, _line_of(passage, position, words, lines), words, advice)


def _misspelled(paths: list[Path]) -> Iterator[Finding]:
    """British spelling, as codespell finds it; its settings are in setup.cfg."""
    command = [sys.executable, "-m", "codespell_lib", *map(str, paths)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 65) or result.stderr:
        raise RuntimeError(f"codespell failed: {result.stderr or result.stdout}")
    for line in result.stdout.splitlines():
        path, number, correction = line.split(":", 2)
        found, _, better = correction.strip().partition(" ==> ")
        name = Path(path).resolve().relative_to(REPOSITORY).as_posix()
        yield Finding(name, int(number), found, f"write {better!r}")


def files(paths: list[Path] | None = None) -> list[Path]:
    """The files with text in some folders, by default in all of the repository."""
    if paths is None:
        paths = [REPOSITORY / ".ci/run", *(path for path in REPOSITORY.iterdir() if path.is_file())]
        paths += [REPOSITORY / name for name in FOLDERS]
    found = set()
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else [path]
        found |= {file for file in inside if file.suffix in SUFFIXES and file.is_file()}
    return sorted(found)


def findings(paths: list[Path] | None = None) -> list[Finding]:
    """All findings in some files and folders, exceptions left out."""
    read = files(paths)
    found = set(_misspelled(read))
    for path in read:
        found.update(_unclear(path, path.relative_to(REPOSITORY).as_posix()))
    return sorted(finding for finding in found if not _is_exception(finding))


def _is_exception(finding: Finding) -> bool:
    line = (REPOSITORY / finding.path).read_text().splitlines()[finding.line - 1]
    return any(finding.path == path and words in line for path, words in EXCEPTIONS)


def main() -> int:
    """Prints a report; status 1 if there is a finding."""
    found = findings([Path(argument).resolve() for argument in sys.argv[1:]] or None)
    for finding in found:
        print(finding)
    tops = Counter(finding.path.partition("/")[0] for finding in found)
    for top, count in sorted(tops.items()):
        print(f"{count:5} in {top}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
