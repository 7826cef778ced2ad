"""The text of the repository: American spelling, numbers as 70,000, no unclear words."""

from pathlib import Path

import pytest

from tests.helpers import prose
from tests.helpers.prose import findings


@pytest.mark.slow
def test_the_repository_is_in_plain_english() -> None:
    found = findings()
    assert not found, f"{len(found)} findings:\n" + "\n".join(map(str, found))


def test_every_folder_is_read() -> None:
    read = {path.relative_to(prose.REPOSITORY).parts[0] for path in prose.files()}
    assert {*prose.FOLDERS, "README.md", "CHANGELOG.md", "pyproject.toml", "setup.cfg"} <= read


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lines and words that are found in a file of a given name and content."""
    monkeypatch.setattr(prose, "REPOSITORY", tmp_path)
    settings = Path(__file__).resolve().parent.parent / "setup.cfg"
    (tmp_path / "setup.cfg").write_text(settings.read_text())

    def problems(name: str, content: str) -> list[tuple[int, str]]:
        (tmp_path / name).write_text(content)
        return [(finding.line, finding.text) for finding in findings([tmp_path / name])]

    return problems


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It is beside the colour.", ["beside", "colour"]),
        ("After 70 000 steps, 1 000 000 in all.", ["1 000 000", "70 000"]),
        ("Pixels 0 100 of 12 34 and 3.5 100 and 70,000.", []),
        ("It begins anew, lest one is told.", ["anew", "lest", "told"]),
        ("The run went on, and goes\non from there.", ["goes on", "went on"]),
        ("Good images alone are enough.", ["alone"]),
        ("They stand alone; each alone; it leaves the others alone.", []),
        (
            "It takes 12 images a second, or 3 MB a second on GPUs.",
            ["MB a second", "images a second"],
        ),
        ("It starts a second process and waits a second time.", []),
        ("What is computed, and where.", ["What"]),
        ("It runs. Of which there are two.", ["Of which"]),
        ("What is a detector? Nobody knows what.", []),
        ("Besides, `told` and `70 000` are code.", []),
    ],
)
@pytest.mark.parametrize("name", ["a.md", "a.py", "comment.py", "a.cc", "a.html", "a.toml"])
def test_words_are_found_in_every_kind_of_file(problems, name, text, words) -> None:
    comment = text.replace("\n", "\n{} ")
    content = {
        "a.md": text,
        "a.py": f'"""{text}"""',
        "comment.py": f"# {comment.format('#')}",
        "a.cc": f"// {comment.format('//')}",
        "a.html": f"<p>{text}</p>",
        "a.toml": f"# {comment.format('#')}",
    }[name]
    found = [words for _, words in problems(name, content + "\n")]
    assert sorted(found) == sorted(words)


def test_python_is_read_where_it_is_prose(problems) -> None:
    content = '''"""Summary.

Told twice.
"""
told = data["told"]
shape: Float[Array, "70 256 3"]


def goes_on(alone):
    call("a", "it is told")  # beside it
    raise ValueError(
        f"{told}: cannot be read; "
        f"begin anew {alone}"
    )  # normalised
'''
    assert problems("a.py", content) == [
        (3, "Told"),
        (5, "told"),
        (9, "alone"),
        (9, "goes on"),
        (10, "beside"),
        (10, "told"),
        (13, "anew"),
        (14, "normalised"),
    ]


def test_markdown_and_html_are_read_where_they_are_prose(problems) -> None:
    markdown = "# Title\n\n```bash\nrun 70 000 # beside\n```\n\n- told [x](told.md)\n"
    assert problems("a.md", markdown) == [(4, "beside"), (7, "told")]
    html = """<style>p { margin: 70 000; }</style>
<p title="told" class="beside">{{ 'anew' }}
  70 000</p>
<script>
const told = "it is told"; // beside
</script>
"""
    assert problems("a.html", html) == [(2, "told"), (3, "70 000"), (5, "beside"), (5, "told")]
