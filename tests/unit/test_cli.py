"""The commands: what they say of themselves, and of what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from computemanager import cli, worker


def test_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Usage: computemanager COMMAND")
    assert "worker" in said and "simulate" in said


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word]) == 0
    assert "COMMAND --help says more" in capsys.readouterr().out


def test_a_command_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["wroker"]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("computemanager: there is no command 'wroker'")
    assert "Usage: computemanager COMMAND" in said.err


def test_the_arguments_are_those_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["computemanager", "nonsense"])
    assert cli.main() == 2
    assert "'nonsense'" in capsys.readouterr().err


def test_a_command_is_given_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["worker", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: computemanager worker")
    for part in ("--slots", "--grace", "COMPUTEMANAGER_ADDRESS", "COMPUTEMANAGER_CLIENT_KEY"):
        assert part in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slots", "0"], "argument --slots: '0': give a whole number above 0, or 'auto'"),
        (["--slots", "-2"], "'-2'"),
        (["--slots", "two"], "argument --slots: 'two': give a whole number above 0, or 'auto'"),
        (["--slots", "1.5"], "argument --slots: '1.5'"),
        (["--slots", "\u0663\u00b2"], "argument --slots"),
        (["--grace", "0"], "argument --grace: '0': give seconds above 0"),
        (["--grace", "nan"], "argument --grace: 'nan': give seconds above 0"),
        (["--grace", "inf"], "argument --grace: 'inf': give seconds above 0"),
        (["--grace", "soon"], "argument --grace: 'soon': give seconds above 0"),
        (["--join-timeout", "-1"], "argument --join-timeout: '-1': give seconds above 0"),
        (["--max-runtime", "0"], "argument --max-runtime: '0': give seconds above 0"),
        (["left over"], "unrecognized arguments: left over"),
    ],
)
def test_arguments_of_worker_that_make_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        worker.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


KEYS = {
    "COMPUTEMANAGER_ADDRESS": "tcp://127.0.0.1:1",
    "COMPUTEMANAGER_SERVER_KEY": "s" * 40,
    "COMPUTEMANAGER_CLIENT_KEY": "c" * 40,
}


@pytest.mark.parametrize("missing", [list(KEYS)[:1], list(KEYS)[1:], list(KEYS)], ids=["one", "two", "all"])
def test_worker_without_its_environment(missing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what is not set, and what that is for. In a process of its own, since it changes that."""
    for name, value in KEYS.items():
        if name not in missing:
            monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from computemanager.cli import main; sys.exit(main())", "worker"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"computemanager worker: {', '.join(missing)} not set. ")
    assert "started by the main process of a job" in done.stderr and "s" * 40 not in done.stderr
