"""Every example of the client's guide, run in order against a real broker and a real worker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.daemon import SCRIPTS, Daemon, clean_env, until
from qclient import shared as shared_module

GUIDE = Path(__file__).parents[2] / "client" / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.e2e
def test_the_guides_examples_do_what_they_say(broker: Daemon, tmp_path: Path, monkeypatch) -> None:
    module, *examples = BLOCKS
    assert module.startswith("# shop.py")
    place = tmp_path / "shop.py"
    place.write_text(module.replace("qbroker://localhost", broker.url))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(shared_module, "shared", {})
    output = tmp_path / "worker.log"
    command = [str(SCRIPTS / "qworker"), "-A", "shop", "-P", "threads", "-c", "2"]
    command += ["-Q", "default,mail", "--workdir", str(tmp_path)]
    with output.open("wb") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=log, env=clean_env())
    try:
        until(lambda: b" ready " in output.read_bytes(), f"the worker's start, see {output}")
        space = {"__name__": "guide"}
        for example in examples:
            exec(compile(example, str(GUIDE), "exec"), space)
    finally:
        worker.terminate()
        worker.wait(30)
        if "shop" in sys.modules:
            sys.modules.pop("shop").app.close()


def test_the_guide_has_examples() -> None:
    assert len(BLOCKS) >= 9
