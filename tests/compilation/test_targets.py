"""Targets, and what a user without a compiler reads."""

import pytest

from efficientad_jax.compilation import targets
from efficientad_jax.compilation.targets import TARGETS, open_devices
from efficientad_jax.errors import InputError


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_missing_compiler_is_named_in_one_line(name, monkeypatch):
    monkeypatch.setattr(targets, "_is_installed", lambda module: False)
    with pytest.raises(InputError) as raised:
        open_devices(name)
    what = "libtpu" if TARGETS[name].platform == "tpu" else "JAX's CUDA plugin"
    assert str(raised.value) == (
        f"--for={name}: needs {what}, which is not installed; run pip install "
        "'efficientad-jax[compile]'"
    )


def test_a_compiler_that_does_not_work_is_named_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the lock file is held\nby another process")

    monkeypatch.setattr(targets, "_is_installed", lambda module: True)
    monkeypatch.setattr(targets, "get_topology_desc", fail)
    for name in ("v5e", "h100"):
        with pytest.raises(InputError, match=r"cannot be used \(the lock file is held\)"):
            open_devices(name)


def test_topologies_have_all_devices_or_are_refused(monkeypatch):
    monkeypatch.setattr(targets, "_is_installed", lambda module: True)
    with pytest.raises(InputError, match="--devices=3: TPU v5e has no topology of so many"):
        open_devices("v5e", 3)
    with pytest.raises(InputError, match="--devices=12: expected at most 8 GPUs or a multiple"):
        open_devices("h100", 12)


def test_gpus_are_described_by_the_figures_of_their_cards():
    for name, target in TARGETS.items():
        if target.platform != "gpu":
            continue
        text = targets.description(name)
        fields = dict(line.strip().split(": ", 1) for line in text.splitlines() if ": " in line)
        assert float(fields["memory_bandwidth"]) == pytest.approx(target.bandwidth, rel=0.01)
        assert float(fields["device_memory_size"]) == pytest.approx(target.memory, rel=0.07)
