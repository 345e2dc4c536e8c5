"""The example of docs/serving.md for Triton runs as it stands there."""

import re
import shlex
from pathlib import Path

import pytest

from rewriter.cli import main

GUIDE = Path(__file__).parents[4] / "docs" / "serving.md"
EXAMPLE = re.compile(r"<!-- triton example -->\n(.*?)<!-- end of the triton example -->", re.DOTALL)


@pytest.mark.rtx
@pytest.mark.tensorflow
def test_the_example_runs(server, tmp_path, monkeypatch):
    """Its commands are run in this process; its client by the python of the server's environment."""
    if not GUIDE.exists():
        pytest.skip("docs/serving.md is not written yet")
    (text,) = EXAMPLE.findall(GUIDE.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(server.repository)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "trt-rewriter"
        assert main(arguments) == 0
    server.load("digits")
    (client,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert client.count('"localhost:8000"') == 1
    printed = server.ask(client.replace("localhost:8000", server.http))
    assert re.fullmatch(r"digits:( \d){8}\n", printed)
