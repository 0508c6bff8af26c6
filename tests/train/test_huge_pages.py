"""Programs start again with large pages, once, where Linux gives them on request."""

import os
import subprocess
import sys

import pytest

from train_jax.cli import huge_pages

ASK, TUNABLE = "always [madvise] never", "glibc.malloc.hugetlb"
SCRIPT = """
import os, pathlib, sys
from train_jax.cli import huge_pages

mode = pathlib.Path(sys.argv[1])
mode.with_name("starts").open("a").write("x")
huge_pages._MODE = mode
os.confstr = lambda name: sys.argv[2]
huge_pages.restart_with_huge_pages()
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
"""


@pytest.mark.parametrize(
    ("mode", "library", "tunables", "starts", "expected"),
    [
        (ASK, "glibc 2.36", None, 2, f"{TUNABLE}=1"),
        (ASK, "glibc 2.35", "a.b=1", 2, f"a.b=1:{TUNABLE}=1"),
        (ASK, "glibc 2.36", f"{TUNABLE}=0", 1, f"{TUNABLE}=0"),
        (ASK, "glibc 2.31", None, 1, "None"),
        (ASK, "musl 1.2", None, 1, "None"),
        ("[always] madvise never", "glibc 2.36", None, 1, "None"),
        (None, "glibc 2.36", None, 1, "None"),
    ],
)
def test_a_program_starts_again_once(
    tmp_path, mode, library, tunables, starts, expected
):
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    if mode is not None:
        (tmp_path / "mode").write_text(mode)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [str(tmp_path / "mode"), library]
    process = subprocess.Popen(
        [sys.executable, "-X", "utf8", str(script), *arguments],
        env=environment | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output == f"{process.pid} {arguments} {expected}\n"
    assert (tmp_path / "starts").read_text() == "x" * starts


def test_the_kernel_of_a_notebook_is_not_replaced(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", sys)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(huge_pages, "_gives_huge_pages", lambda: True)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("replaced"))
    huge_pages.restart_with_huge_pages()


def test_it_knows_what_linux_and_glibc_say(monkeypatch):
    monkeypatch.delattr(os, "confstr", raising=False)
    assert not huge_pages._gives_huge_pages()
