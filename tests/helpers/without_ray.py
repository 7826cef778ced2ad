"""Runs `experiments.NAME` as where Ray is not installed.

python -m tests.helpers.without_ray NAME [arguments]
"""

import importlib.util
import runpy
import sys

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "ray" else find_spec(name, *a)
_, command, *arguments = sys.argv
sys.argv = ["", *arguments]
runpy.run_module(f"experiments.{command}", run_name="__main__", alter_sys=True)
