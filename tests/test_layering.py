"""The package's modules import in one direction, and no more than they need."""

import ast
import graphlib
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from multiprocessing.pool import Pool
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "efficientad_jax"

# In the order in which data flows. A module may import from its own layer and from those above it
# here; within a layer, in any direction that makes no circle.
LAYERS = {
    "ground": [
        "atomic_file",
        "cache_folder",
        "compilation_cache",
        "configuration",
        "ending",
        "errors",
        "interruption",
        "regular_file",
        "safetensors_file",
        "soak",
        "workdir",
    ],
    "data": [
        "data",
        "data.archive",
        "data.btad",
        "data.builder",
        "data.decoding",
        "data.elpv",
        "data.examples",
        "data.files",
        "data.folder",
        "data.layout",
        "data.loading",
        "data.mvtec_ad",
        "data.mvtec_ad2",
        "data.mvtec_loco",
        "data.photographs",
        "data.saturation",
        "data.views",
        "data.visa",
        "augmentation",
        "preprocessing",
        "resize",
        "torch_weights",
    ],
    "convolution": [
        "channel_statistics",
        "convolution",
        "cook_toom",
        "layers",
        "native_convolution",
        "native_library",
    ],
    "networks": [
        "autoencoder",
        "backbone",
        "efficientnet_lite",
        "model",
        "patch_features",
        "pdn",
        "teacher",
        "torch_teacher",
        "resnet",
    ],
    "losses": ["losses", "optimizer"],
    "training": [
        "checkpoints",
        "distillation",
        "distillation_batches",
        "distillation_loop",
        "map_normalization",
        "multihost",
        "pace",
        "parallel_training",
        "scalars",
        "shares",
        "target_projection",
        "targets",
        "training",
        "training_loop",
        "training_run",
        "view_pool",
    ],
    "detector": [
        "calibration",
        "detector",
        "detector_file",
        "detector_spec",
        "fit",
        "inference",
        "recalibration",
        "threshold",
        "tiling",
        "verdict",
    ],
    "evaluation": [
        "baselines",
        "nearest_neighbors",
        "evaluation",
        "hard_features",
        "heatmap",
        "receptive_field",
        "region_overlap",
    ],
    "export": [
        "export",
        "export.int8",
        "export.onnx_graph",
        "export.onnx_model",
        "export.onnx_networks",
        "export.programs",
        "export.stablehlo",
    ],
    "report": [
        "assessment",
        "figures",
        "figures.drawing",
        "figures.hard_features",
        "figures.latency",
        "figures.maps",
        "figures.receptive_field",
        "paper_results",
        "prediction",
        "report",
    ],
    "benchmark": [
        "benchmark",
        "benchmark.cost",
        "benchmark.first_map",
        "benchmark.implementations",
        "benchmark.peers",
        "benchmark.results",
        "benchmark.side_by_side",
        "benchmark.start_up",
        "benchmark.timing",
        "benchmark.torch_networks",
        "benchmark.weights",
    ],
    "reproduction": [
        "reproduction",
        "reproduction.aggregation",
        "reproduction.collections_on_disk",
        "reproduction.execution",
        "reproduction.plan",
        "reproduction.rendering",
        "reproduction.speed",
        "reproduction.tables",
    ],
    "sweep": [
        "sweep",
        "sweep.claims",
        "sweep.execution",
        "sweep.plan",
        "sweep.progress",
        "sweep.status",
        "sweep.summary",
    ],
    "at work": [
        "__main__",
        "serving",
        "serving.answers",
        "serving.application",
        "serving.batching",
        "serving.limits",
        "serving.metrics",
        "serving.scoring",
        "serving.server",
        "serving.uploads",
        "watching",
        "watching.arrivals",
        "watching.camera",
        "watching.journal",
        "watching.watch",
    ],
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}
# The package itself only names the public parts of its modules: all may be imported there, and no
# module may import it.
FACADE = ""


def module_files() -> dict[str, Path]:
    """Every module of the package: its name below the package, and its file."""
    files = {}
    for path in sorted((REPOSITORY / PACKAGE).rglob("*.py")):
        parts = path.relative_to(REPOSITORY / PACKAGE).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = module_files()


def imported_names(source: str, module: str, is_package: bool) -> set[str]:
    """The absolute dotted names that a module's source imports, inside functions too.

    `from a import b` gives `a.b`, whether `b` is a module or not.
    """
    inside = [PACKAGE, *filter(None, module.split("."))]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = inside[: len(inside) - node.level + is_package] + base
            names.update(".".join([*base, alias.name]) for alias in node.names)
    return names


def imported_modules(module: str) -> set[str]:
    """The modules of the package that a module of the package imports, by name below it."""
    path = MODULES[module]
    names = imported_names(path.read_text(), module, path.name == "__init__.py")
    found = set()
    for name in names:
        top, _, rest = name.partition(".")
        if top == PACKAGE:
            # `rest` is a module, or a name defined in the module that its front part names.
            found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found


INNER_MODULES = sorted(set(MODULES) - {FACADE})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import efficientad_jax.pdn as p", {"efficientad_jax.pdn"}),
        (
            "from efficientad_jax import pdn, report",
            {"efficientad_jax.pdn", "efficientad_jax.report"},
        ),
        ("def f():\n    from efficientad_jax.pdn import LAYERS", {"efficientad_jax.pdn.LAYERS"}),
        ("from . import folder", {"efficientad_jax.data.folder"}),
        ("from ..errors import InputError", {"efficientad_jax.errors.InputError"}),
    ],
)
def test_imports_are_found_in_every_form(source: str, expected: set[str]) -> None:
    assert imported_names(source, "data.loading", is_package=False) == expected


def test_every_module_has_a_layer() -> None:
    without = [name for name in INNER_MODULES if name not in LAYER_OF]
    gone = [name for name in LAYER_OF if name not in MODULES]
    assert not without, f"modules without a layer: {without}; add them to LAYERS"
    assert not gone, f"layers of modules that are gone: {gone}; take them out of LAYERS"


@pytest.mark.parametrize("module", INNER_MODULES)
def test_module_imports_nothing_later_in_the_flow(module: str) -> None:
    order = list(LAYERS)
    own = order.index(LAYER_OF[module])
    imported = imported_modules(module)
    assert FACADE not in imported, f"{module} imports the package itself; import the module meant"
    later = {name for name in imported if order.index(LAYER_OF[name]) > own}
    assert not later, f"{module} is in layer {order[own]!r} and imports from later ones: {later}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: imported_modules(module) - {module} for module in INNER_MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", sorted(MODULES))
def test_package_imports_nothing_of_the_experiments(module: str) -> None:
    path = MODULES[module]
    names = imported_names(path.read_text(), module, path.name == "__init__.py")
    tops = {name.partition(".")[0] for name in names}
    assert not tops & {"experiments", "configs", "tests"}


def test_names_say_what_a_file_holds() -> None:
    vague = {"common", "helper", "helpers", "misc", "util", "utils"}
    folders = [REPOSITORY / name for name in (PACKAGE, "configs", "experiments", "tests")]
    paths = [path.relative_to(REPOSITORY) for folder in folders for path in folder.rglob("*.py")]
    assert paths
    assert not [path for path in paths if vague & set(path.with_suffix("").parts)]


def said_by(code: str) -> str:
    """What a fresh process prints that runs this code."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_leaves_heavy_libraries_alone() -> None:
    heavy = {"tensorflow", "tensorflow_datasets", "torch"}
    assert said_by(f"import sys, {PACKAGE}; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_a_detector_and_its_server_start_without_the_code_of_a_training() -> None:
    pytest.importorskip("starlette", reason="needs the server: pip install -e '.[serve]'")
    at_work = (
        "calibration",
        "detector",
        "export.stablehlo",
        "inference",
        "prediction",
        "serving.application",
    )
    of_training = {
        f"{PACKAGE}.{name}"
        for name in (
            "augmentation",
            "fit",
            "losses",
            "optimizer",
            "training",
            "training_loop",
            "training_run",
        )
    }
    assert of_training <= {f"{PACKAGE}.{name}" for name in MODULES}
    imports = ", ".join(f"{PACKAGE}.{name}" for name in at_work)
    code = f"import sys, {imports}; print(sorted({of_training | {'optax'}} & set(sys.modules)))"
    assert said_by(code) == "[]"


def test_public_names_are_listed_and_there_at_first_use() -> None:
    # Before it is used, hard_feature_loss is not loaded, but known.
    code = f"""
import sys, {PACKAGE} as package
print("{PACKAGE}.losses" in sys.modules, set(package.__all__) <= set(dir(package)))
print(package.hard_feature_loss.__name__, "{PACKAGE}.losses" in sys.modules)
print(all(hasattr(package, name) for name in package.__all__), hasattr(package, "no_such"))
print(package.__version__, "__version__" in dir(package))
"""
    lines = said_by(code).splitlines()
    assert lines[:3] == ["False True", "hard_feature_loss True", "True False"]
    assert lines[3] == f"{version('efficientad-jax')} True"


@pytest.fixture(scope="module")
def fresh_processes() -> Iterator[Pool]:
    """Runs each task in a process of its own, forked from one with the slow imports behind it."""
    context = multiprocessing.get_context("forkserver")
    slow = ["flax.linen", "matplotlib.pyplot", "optax", "orbax.checkpoint", "sklearn.metrics"]
    context.set_forkserver_preload(slow)
    with context.Pool(1, maxtasksperchild=1) as pool:
        yield pool


@pytest.mark.parametrize("module", INNER_MODULES)
def test_module_can_be_imported_first(module: str, fresh_processes: Pool) -> None:
    fresh_processes.apply(exec, (f"import {PACKAGE}.{module}",))
