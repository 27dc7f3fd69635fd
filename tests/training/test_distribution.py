"""Which device a run takes and why, and launches that would be something else than plain data parallelism."""

from __future__ import annotations

import shutil

import pytest
import torch
from accelerate.state import AcceleratorState

from armillary import system
from armillary.assemble import build, training
from armillary.refusal import Refusal
from armillary.training import distribution

H200 = (9, 0)


@pytest.fixture
def card(monkeypatch):
    """A card of compute capability 9.0, and what torch was built for."""

    def put(built: list[str], is_there: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: H200)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "hip", None)

    AcceleratorState._reset_state(reset_partial_state=True)
    yield put
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("built", "is_usable"),
    [
        (["sm_80", "sm_90", "sm_100"], True),
        (["sm_90a"], True),
        ([], True),  # not told: torch asks no further either
        (["sm_80", "compute_80a"], False),  # for that card alone
        (["sm_80", "sm_86"], False),  # of an earlier generation
        (["sm_100"], False),
        (["sm_80", "compute_80"], True),  # PTX, compiled for the card when it is loaded
        (["compute_100"], False),
    ],
)
def test_a_card_is_used_where_torch_was_built_for_it(built, is_usable, card):
    card(built)
    name, why = system.gpu()
    assert (name == "cuda") is is_usable and "Card (compute capability 9.0)" in why
    if not is_usable:
        assert all(one in why for one in built)
        assert build.pick_device("auto").type == "cpu" == distribution.join("auto").device.type
        with pytest.raises(Refusal, match=r"training\.device: cuda .*compute capability"):
            distribution.join("cuda")


def test_what_is_missing_is_named(card, monkeypatch):
    card([], is_there=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for the CPU only" in system.gpu()[1]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no NVIDIA driver" in system.gpu()[1]
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert "CUDA 13.0" in system.gpu()[1] and "update the driver" in system.gpu()[1]


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_run_that_fell_back_to_the_cpu_says_why_once(device, card, small_recipe, tmp_path):
    card([], is_there=False)
    said: list[str] = []
    request = training.Request(str(small_recipe), [f"training.device={device}"], name="run", root=tmp_path)
    training.start(training.check(request), said.append)
    told = [line for line in said if "on the CPU" in line]
    assert told == ([f"on the CPU: a GPU is {system.gpu()[1]}"] if device == "auto" else [])


@pytest.mark.parametrize("other", ["FSDP", "DEEPSPEED"])
def test_another_parallelism_is_refused_on_a_cpu_too(other, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{other}", "true")
    with pytest.raises(Refusal, match=f"{other}: several processes train by plain data parallelism"):
        distribution.join("cpu")
