"""The command line's own behaviour: help, errors of usage, exit codes, start-up. Verbs have tests of their own."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from netsmith.cli import main as entry
from netsmith.cli.main import VERBS, main
from netsmith.distributed import processes
from netsmith.errors import ConfigError, SourceError

NAMES = [verb.__name__.rpartition(".")[2] for verb in VERBS]
COMMANDS = [[name] for name in NAMES] + [["zoo", "list"], ["zoo", "check"], ["presets", "list"], ["presets", "copy"]]


def test_the_verbs_are_those_of_this_release():
    assert NAMES == [
        "demo",
        "shrink",
        "reassemble",
        "morph",
        "sample",
        "explore",
        "export",
        "train",
        "evaluate",
        "dissect",
        "compare",
        "zoo",
        "presets",
        "report",
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_ends_in_examples_that_parse(command, capsys):
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    lines = [
        line.strip() for line in text.partition("examples:\n")[2].splitlines() if line.strip().startswith("netsmith")
    ]
    assert lines, text
    for line in lines:
        words = line.partition("  ")[0].split()
        assert words[1] == command[0]
        entry.build_parser().parse_args(words[1:])  # raises UsageError when the example is wrong


def test_help_of_the_whole_names_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    for name, verb in zip(NAMES, VERBS, strict=True):
        assert f"    {name}" in text
        assert verb.SUMMARY in text


def test_no_words_print_help(capsys):
    assert main([]) == 0
    assert "usage: netsmith" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("netsmith 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["disect"], "unknown verb 'disect'. Did you mean 'dissect'?\nSee `netsmith --help`."),
        (["morhp"], "Did you mean 'morph'?"),
        (["presets", "copi"], "unknown action 'copi'. Did you mean 'copy'?\nSee `netsmith presets --help`."),
        (["zoo"], "the following arguments are required: ACTION\nSee `netsmith zoo --help`."),
        (["dissect"], "the following arguments are required: SOURCE\nSee `netsmith dissect --help`."),
        (
            ["dissect", "a", "--jsn"],
            "unknown option --jsn. Did you mean '--json' or '--std'?\nSee `netsmith dissect --help`.",
        ),
        (["zoo", "check", "f", "--ofline"], "unknown option --ofline. Did you mean '--offline'"),
        (["dissect", "a", "b"], "one argument too many: 'b'"),
        (
            ["dissect", "a", "--input-size", "3x224"],
            "a size such as 3x224x224 (channels x height x width) was expected",
        ),
        (["compare", "a", "b", "--images", "0"], "a whole number of at least 1 was expected, '0' came"),
        (["compare", "a", "b", "--device", "gpu"], "cpu, cuda, cuda:1, xpu or mps was expected, 'gpu' came"),
        (["train", "c", "--out", "o", "--set", "seed"], "KEY=VALUE was expected, such as budget.params.max=0.4M"),
        (["train", "c"], "the following arguments are required: --out"),
        (["evaluate", "a", "--data", "digits", "--split", "tets"], "Did you mean 'test'?"),
        (["demo", "--seed", "-1", "--out", "o"], "--seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_of_usage_are_one_message_and_exit_code_2(words, message, capsys):
    assert main(words) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.out == ""
    assert streams.err.startswith("netsmith: ")
    assert "Traceback" not in streams.err
    assert len(streams.err.splitlines()) <= 2


def _failing(monkeypatch, failure, *, kept=None):
    def run(arguments, session):
        session.kept = kept
        raise failure

    monkeypatch.setattr(entry.report, "run", run)
    return main(["report", "somewhere"])


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (SourceError("no network 'x'"), "netsmith: no network 'x'"),
        (ConfigError("two faults", ["line 1: a", "line 2: b"]), "netsmith: two faults\n  - line 1: a\n  - line 2: b"),
        (FileNotFoundError(errno.ENOENT, "no", "zoo.yaml"), "there is no file or folder zoo.yaml."),
        (PermissionError(errno.EACCES, "no", "/root/x"), "no permission for /root/x."),
        (OSError(errno.ENOSPC, "full", "/out/w"), "no space left at /out/w."),
        (OSError(errno.ENAMETOOLONG, "long", "x" * 300), f"the name {'x' * 60}... is too long for the file system."),
        (MemoryError(), "out of memory."),
    ],
)
def test_a_failure_that_the_user_can_mend(failure, message, monkeypatch, capsys):
    assert _failing(monkeypatch, failure) == 2
    assert message in capsys.readouterr().err


def test_config_faults_are_not_printed_twice(monkeypatch, capsys):
    _failing(monkeypatch, ConfigError("1 fault:\n  line 1: a", ["line 1: a"]))
    assert capsys.readouterr().err.count("line 1: a") == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        _failing(monkeypatch, ZeroDivisionError())


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("NETSMITH_DEBUG", "1")
    with pytest.raises(SourceError):
        _failing(monkeypatch, SourceError("x"))


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(monkeypatch, capsys, tmp_path):
    def run(arguments, session):
        session.kept = arguments.out
        raise KeyboardInterrupt

    monkeypatch.setattr(entry.train, "run", run)
    assert main(["train", "a.yaml", "--out", "runs/a b", "--overwrite"]) == 130
    text = capsys.readouterr().err
    assert "interrupted. What was finished is kept in runs/a b; go on with:" in text
    assert "netsmith train a.yaml --out 'runs/a b'\n" in text


def test_ctrl_c_before_anything_was_written(monkeypatch, capsys):
    assert _failing(monkeypatch, KeyboardInterrupt()) == 130
    assert "interrupted; nothing was written." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x"}, "the environment's RANK is 'x', expected a whole number of at least 0. Launch with torchrun"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number of at least 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, expected less than WORLD_SIZE, which is 2"),
    ],
)
def test_an_environment_of_no_launcher_is_refused(variables, message, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["presets", "list"]) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert len(streams.err.splitlines()) == 1
    assert not streams.out


def test_a_process_launched_alone_is_the_first_whatever_its_rank(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main(["presets", "list"]) == 0
    assert "cifar10" in capsys.readouterr().out
    assert processes.first()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not processes.first()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell is needed that closes streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault(closed):
    words = f"'{sys.executable}' -W error -m netsmith presets list {closed}"
    done = subprocess.run(["/bin/sh", "-c", words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert ("cifar10" in done.stdout) == (closed == "2>&-")


def test_help_needs_no_torch():
    code = (
        "import sys; from netsmith.cli.main import main; main(['reassemble', '--help']); main(['presets', 'list']);"
        "heavy = {'torch', 'timm', 'torchvision', 'scipy', 'sklearn', 'pydantic', 'jinja2'} & set(sys.modules);"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"
