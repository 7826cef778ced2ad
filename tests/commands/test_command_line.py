"""The command `efficientad`: its subcommands, its help and what it says of wrong arguments."""

import re
import signal
import tomllib

import pytest

from efficientad_jax import commands
from efficientad_jax.commands import COMMANDS
from tests.helpers.command import REPOSITORY, efficientad


@pytest.fixture
def ended(capsys):
    """The status and the output of a command that ends before it has done anything."""
    before = signal.getsignal(signal.SIGTERM)

    def ended(*arguments):
        with pytest.raises(SystemExit) as error:
            commands.main([str(argument) for argument in arguments])
        return error.value.code, *capsys.readouterr()

    yield ended
    signal.signal(signal.SIGTERM, before)


def test_the_help_names_every_subcommand(ended):
    status, out, err = ended("--help")
    assert (status, err) == (0, "")
    assert re.findall(r"^    (\S+)", out, re.M) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_subcommand_describes_its_arguments(ended, name):
    status, out, err = ended(name, "--help")
    assert (status, err) == (0, "")
    assert f"    efficientad {name} " in out
    special = {"train": "FOLDER", "import-teacher": "FILE", "export-teacher": "TEACHER"}
    first = special.get(name, "DETECTOR")
    positional = re.search(r"^positional arguments:\n  (\S+)", out, re.M)
    assert (positional and positional[1]) == (None if name == "clear-cache" else first)
    flags = re.findall(r"(?<!\S)--\S*", out)
    assert "--help" in flags
    assert not [flag for flag in flags if "_" in flag.partition("=")[0]]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "COMMAND"),
        (("calibrate",), "'calibrate'"),
        (("train", "folder"), "--workdir"),
        (("train", "folder", "--workdir=a", "--config.train.stepz=1"), "--config.train.stepz=1"),
        (("evaluate",), "DETECTOR"),
        (("info", "detector", "folder"), "folder"),
        (("predict",), "DETECTOR, IMAGE"),
        (("predict", "detector"), "IMAGE"),
        (("predict", "detector", "a.png", "--false_alarm_rate=0.1"), "--false_alarm_rate"),
        (("predict", "detector", "a.png", "--out=b"), "--out=b"),
        (("predict", "detector", "a.png", "--overlap=1.5"), "--overlap"),
        (("set-threshold", "detector"), "--false-alarm-rate"),
        (("set-threshold", "detector", "--false-alarm-rate=low"), "--false-alarm-rate"),
        (("export", "detector", "--output=a.onnx"), "--format"),
        (("export", "detector", "--format=tflite", "--output=a.tflite"), "'tflite'"),
        (("evaluate-exported", "detector"), "FILE"),
        (("watch", "detector", "--source=a", "--output=b", "--every=-1"), "--every"),
        (("import-teacher", "a", "b", "c"), "c"),
        (("export-teacher", "a", "b.pth", "--size=huge"), "'huge'"),
    ],
)
def test_arguments_that_cannot_be_used_are_one_line(ended, arguments, named):
    status, out, err = ended(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert "--help" in line


def test_flags_may_stand_between_files(ended, tmp_path):
    status, _, err = ended("predict", tmp_path, "a.png", "--low=0", "b.png")
    assert status == 2
    assert "no detector.json" in err


def test_the_module_and_the_console_command_are_the_same():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (script,) = project["scripts"].items()
    assert script == ("efficientad", "efficientad_jax.commands:main")
    result = efficientad("frobnicate")
    assert result.returncode == 2
    assert result.stderr.startswith("error: argument COMMAND: invalid choice: 'frobnicate'")
    assert result.stderr.endswith("see python -m efficientad_jax --help\n")


def test_messages_name_no_command_that_is_not_installed():
    # `experiments` is not in the wheel. A message may name it as part of a checkout; the record of
    # a teacher names the command that distilled it.
    texts = [path.read_text() for path in (REPOSITORY / "efficientad_jax").rglob("*.py")]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    of_a_checkout = [line for line in lines if "python -m experiments" in line]
    assert of_a_checkout == ['"command": "python -m experiments.distill",']
    installed = {
        name for line in lines for name in re.findall(r"`efficientad ([a-z][a-z-]*)", line)
    }
    assert "export" in installed
    assert installed <= set(COMMANDS)
