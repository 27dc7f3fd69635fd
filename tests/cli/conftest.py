"""A verb called in this process."""

from __future__ import annotations

import warnings

import pytest

from armillary.cli import main


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs a verb in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            main([str(word) for word in words])
            status = 0
        except SystemExit as ending:
            status = int(ending.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run
