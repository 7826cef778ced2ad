"""Programs are compiled once: the next process loads them and computes the same."""

import logging
import os
import subprocess
import sys

import jax
import pytest

from efficientad_jax.storage.cache import cache_folder, keep_compiled_programs

NAMED = "JAX_COMPILATION_CACHE_DIR"
PROGRAM = """
import jax, jax.numpy as jnp
from efficientad_jax.storage.cache import keep_compiled_programs
from efficientad_jax.convolution import convolve
keep_compiled_programs()
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
x = jax.random.normal(jax.random.key(0), (1, 9, 9, 32))
y = jax.jit(lambda x: convolve(x, x[0, :4, :4, :, None] * jnp.ones(32)).sum())(x)
hits = events.count("/jax/compilation_cache/cache_hits")
print(float(y), hits > 0, jax.config.jax_compilation_cache_dir)
"""


def run(tmp_path, **variables):
    inherited = {name: value for name, value in os.environ.items() if name != NAMED}
    environment = inherited | {"XDG_CACHE_HOME": str(tmp_path)} | variables
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.slow
def test_the_second_process_compiles_nothing(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert first[1] == "False"
    assert second[1] == "True"
    assert second[0] == first[0]
    assert first[2] == second[2]
    assert first[2].startswith(str(tmp_path / "efficientad_jax" / "programs-"))
    assert run(tmp_path, **{NAMED: str(tmp_path / "mine")})[2] == str(tmp_path / "mine")


def test_nothing_is_cached_in_a_folder_that_others_can_write_to(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(NAMED, raising=False)
    cache_folder().chmod(0o777)
    with pytest.raises(PermissionError, match="only you can write to"):
        cache_folder()
    before = jax.config.jax_compilation_cache_dir
    with caplog.at_level(logging.WARNING):
        keep_compiled_programs()
    assert "not kept" in caplog.text
    assert jax.config.jax_compilation_cache_dir == before
