"""Shared by all tests: shapes are types here (jaxtyping + beartype), and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import jaxtyping
import pytest

for room in ("nn", "backbones", "objectives", "samplers", "model"):
    jaxtyping.install_import_hook(f"armillary.{room}", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)  # pytest-xdist runs two processes on two cores


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real datasets, beside the repository or named by ARMILLARY_DATA."""
    folder = Path(os.environ.get("ARMILLARY_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real datasets are not here ({folder}); set ARMILLARY_DATA")
    return folder
