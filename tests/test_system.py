"""Facts of a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from armillary.system import peak_bytes

SIZE = 300 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak is what getrusage says")
def test_a_peak_is_of_the_process_that_asks_and_not_of_the_one_that_started_it():
    held = bytearray(b"1" * SIZE)
    code = "from armillary.system import peak_bytes; print(peak_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert child < len(held) < (peak_bytes() or 0)
