"""Run a command as a user would, and read the line they get for a mistake."""

from functools import cache

from typer import testing

from tqgguf.cli import app

# A runner makes all commands for each of its calls, which takes longer than many of them do.
testing._get_command = cache(testing._get_command)
RUNNER = testing.CliRunner()


def run(*args):
    return RUNNER.invoke(app, [str(a) for a in args])


def succeeds(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*args, says, code=1):
    """The command exits with `code`, prints nothing but one line, and that line says so."""
    result = run(*args)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line
