"""What the README tells a stranger to type, typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_own_experiment_is_complete_in_25_lines_and_runs_outside_the_repository(tmp_path):
    code = next(block for block in blocks("python") if "EXPERIMENT =" in block)
    assert len(code.splitlines()) <= 25
    (tmp_path / "width.py").write_text(code)
    done = subprocess.run([sys.executable, "width.py", "--scale=smoke"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/mine/width/smoke/figures/width.svg").exists()
    notebook = next(block for block in blocks("python") if "api.run(" in block)
    code = f"from width import EXPERIMENT\n{notebook}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_two_commands_are_one_line_each():
    commands = [line for block in blocks("bash") for line in block.splitlines() if "-m venv" in line]
    assert len(commands) == 2
    assert "experiments.optimization.optimizers" in commands[0]
    assert commands[1].endswith("-m pytest -n 2 --dist=worksteal")


def test_every_flag_the_readme_names_exists():
    from dlexp import cli

    known = set(cli._flags()) | {"all", "markdown", "version"}
    ours = "\n".join(line for line in README.splitlines() if "-m pytest" not in line)
    named = {flag.partition("=")[0] for flag in re.findall(r"--(\w+)", ours)}
    assert named <= known
