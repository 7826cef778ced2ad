"""The package's modules import in one direction, and no more than they need."""

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

import efficientad_jax
from efficientad_jax.commands import COMMANDS, module_of

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "efficientad_jax"

# In the order in which data flows. A package may import from those above it here; a module in the
# root counts as a package, and what lies in a package's own folder as a package of its own.
PACKAGES = [
    "errors",
    "config",
    "optimizer",
    "storage",
    "runs",
    "recipes",
    "data",
    "data.datasets",
    "synthetic_defects",
    "convolution",
    "networks",
    "distillation.backbones",
    "distillation",
    "training",
    "detection.puad",
    "detection.regions",
    "detection.tiles",
    "detection",
    "compilation",
    "fitting",
    "evaluation",
    "export",
    "known_defects",
    "monitoring",
    "serving",
    "watching",
    "benchmark",
    "benchmark.trainings",
    "scheduling",
    "reproduction",
    "sweep",
    "figures",
    "commands",
    "commands.teachers",
    "commands.training",
    "__main__",
]
# Of these none imports another.
PHASES = {"distillation", "training", "detection"}
# So many files, of whatever kind, a reader still takes in at a glance.
MOST_FILES_IN_ROOT = 8
MOST_FILES = 12
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
# A comment on the first line of a file or function that may be longer, with the reason.
LONG = re.compile(r"# long: \S")
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


def imported_names(
    source: str, module: str, is_package: bool, in_functions: bool = True
) -> set[str]:
    """The absolute dotted names that a module's source imports, inside functions or not.

    `from a import b` gives `a.b`, whether `b` is a module or not.
    """
    inside = [PACKAGE, *filter(None, module.split("."))]
    names = set()
    tree = ast.parse(source)
    for node in ast.walk(tree) if in_functions else tree.body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = inside[: len(inside) - node.level + is_package] + base
            names.update(".".join([*base, alias.name]) for alias in node.names)
    return names


@cache
def imported_modules(module: str, in_functions: bool = True) -> set[str]:
    """The modules of the package that a module of the package imports, by name below it."""
    path = MODULES[module]
    is_package = path.name == "__init__.py"
    names = imported_names(path.read_text(), module, is_package, in_functions)
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
        ("import efficientad_jax.optimizer as o", {"efficientad_jax.optimizer"}),
        (
            "from efficientad_jax import errors, recipes",
            {"efficientad_jax.errors", "efficientad_jax.recipes"},
        ),
        ("def f():\n    from efficientad_jax.recipes import f", {"efficientad_jax.recipes.f"}),
        ("from . import files", {"efficientad_jax.data.files"}),
        ("from ..errors import InputError", {"efficientad_jax.errors.InputError"}),
    ],
)
def test_imports_are_found_in_every_form(source: str, expected: set[str]) -> None:
    assert imported_names(source, "data.loading", is_package=False) == expected


def package_of(module: str) -> str:
    """The package that a module is in, the module itself if that is the root."""
    is_package = MODULES[module].name == "__init__.py"
    return module if is_package else module.rpartition(".")[0] or module


def folder_of(package: str) -> str:
    """The folder of the root that a package is in."""
    return package.partition(".")[0]


def imported_packages(module: str) -> set[str]:
    """The other packages that a module imports from.

    Within a folder of the root those count that are imported when the module is.
    """
    own = package_of(module)
    found = {package_of(name) for name in imported_modules(module)}
    first = {package_of(name) for name in imported_modules(module, in_functions=False)}
    return {name for name in found if name in first or folder_of(name) != folder_of(own)} - {own}


def test_every_package_has_a_place_in_the_flow() -> None:
    packages = {package_of(module) for module in INNER_MODULES}
    without, gone = packages - set(PACKAGES), set(PACKAGES) - packages
    assert not without, f"packages without a place: {without}; add them to PACKAGES"
    assert not gone, f"packages that are gone: {gone}; take them out of PACKAGES"


@pytest.mark.slow
@pytest.mark.parametrize("module", INNER_MODULES)
def test_module_imports_from_earlier_packages(module: str) -> None:
    imported = imported_modules(module)
    assert FACADE not in imported, f"{module} imports the package itself; import the module meant"
    place = PACKAGES.index(package_of(module))
    later = {name for name in imported_packages(module) if PACKAGES.index(name) > place}
    assert not later, f"{module} imports from later packages: {later}"


def test_the_phases_import_nothing_of_each_other() -> None:
    for module in INNER_MODULES:
        own = folder_of(package_of(module))
        if own in PHASES:
            imported = {folder_of(package_of(name)) for name in imported_modules(module)}
            others = (PHASES - {own}) & imported
            assert not others, f"{module} imports {others}"


def test_no_packages_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module in INNER_MODULES:
        graph.setdefault(package_of(module), set()).update(imported_packages(module))
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_folders_can_be_taken_in_at_a_glance() -> None:
    root = REPOSITORY / PACKAGE
    folders = [root, *(p for p in root.rglob("*") if p.is_dir() and p.name != "__pycache__")]
    for folder in folders:
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        most = MOST_FILES_IN_ROOT if folder == root else MOST_FILES
        assert len(files) <= most, f"{folder}: more than {most} files: {files}"


def python_files() -> list[Path]:
    """Every Python file of the repository that is in one of its own folders."""
    folders = (REPOSITORY / name for name in (PACKAGE, "configs", "experiments", "tests"))
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def too_long(source: str) -> list[str]:
    """The files and functions of a source that are too long, without `# long: REASON`."""
    lines = source.splitlines()
    found = []
    if len(lines) > MOST_LINES_OF_A_FILE and not LONG.search(lines[0]):
        found.append(f"{len(lines)} lines, expected at most {MOST_LINES_OF_A_FILE}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = (node.end_lineno or 0) - node.lineno + 1
            if count > MOST_LINES_OF_A_FUNCTION and not LONG.search(lines[node.lineno - 1]):
                found.append(
                    f"line {node.lineno}: {node.name} has {count} lines, "
                    f"expected at most {MOST_LINES_OF_A_FUNCTION}"
                )
    return found


@pytest.mark.slow
def test_files_and_functions_fit_on_few_screens() -> None:
    found = {
        path.relative_to(REPOSITORY).as_posix(): problems
        for path in python_files()
        if (problems := too_long(path.read_text()))
    }
    listed = "\n".join(f"{path}: {line}" for path, lines in found.items() for line in lines)
    assert not found, f"divide these, or say why not in `# long: REASON`:\n{listed}"


def test_long_files_and_functions_are_found() -> None:
    body = "    pass\n" * MOST_LINES_OF_A_FUNCTION
    assert too_long("def f():\n" + body[9:]) == []
    (found,) = too_long("def f():\n" + body)
    assert found == "line 1: f has 61 lines, expected at most 60"
    assert too_long("def f():  # long: a table\n" + body) == []
    assert len(too_long("def f():  # long:\n" + body)) == 1
    lines = "x = 1\n" * MOST_LINES_OF_A_FILE
    assert too_long(lines) == []
    assert too_long("# a table\n" + lines) == ["401 lines, expected at most 400"]
    assert too_long("# long: a table\n" + lines) == []


def test_no_public_name_is_that_of_a_module() -> None:
    in_root = {module.partition(".")[0] for module in INNER_MODULES}
    assert not in_root & set(efficientad_jax.__all__)


def test_no_name_stands_in_the_place_of_a_module() -> None:
    # A name that a package's __init__ imports would hide a module of that name from
    # `import a.b as c`.
    for package, path in MODULES.items():
        if path.name == "__init__.py":
            names = imported_names(path.read_text(), package, is_package=True)
            for name in names:
                inside = ".".join(filter(None, [package, name.rpartition(".")[2]]))
                meant = f"{PACKAGE}.{inside}"
                assert inside not in MODULES or name == meant, f"{package}: {name} hides {meant}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    # So each of them can be imported first.
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
    paths = [path.relative_to(REPOSITORY) for path in python_files()]
    assert paths
    paths = [path for path in paths if path.parts[:2] != ("tests", "helpers")]
    assert not [path for path in paths if vague & set(path.with_suffix("").parts)]


def said_by(code: str) -> str:
    """The output of a fresh process that runs this code."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.slow
def test_importing_the_package_leaves_heavy_libraries_alone() -> None:
    heavy = {"tensorflow", "tensorflow_datasets", "torch"}
    assert said_by(f"import sys, {PACKAGE}; print(sorted({heavy} & set(sys.modules)))") == "[]"


@pytest.mark.slow
def test_a_detector_and_its_server_start_without_the_code_of_a_training() -> None:
    pytest.importorskip("starlette", reason="needs the server: pip install -e '.[serve]'")
    at_work = (
        "detection.calibration",
        "detection.detector",
        "export.stablehlo",
        "detection.inference",
        *(module_of(name).removeprefix(f"{PACKAGE}.") for name in COMMANDS),
        "detection.predict_files",
        "serving.application",
    )
    of_training = {
        f"{PACKAGE}.{name}"
        for name in (
            "training.augmentation",
            "fitting.fit_detector",
            "training.losses",
            "optimizer",
            "training.step",
            "training.loop",
            "training.session",
        )
    }
    assert of_training <= {f"{PACKAGE}.{name}" for name in MODULES}
    imports = ", ".join(f"{PACKAGE}.{name}" for name in at_work)
    code = f"import sys, {imports}; print(sorted({of_training | {'optax'}} & set(sys.modules)))"
    assert said_by(code) == "[]"


def test_the_help_of_the_command_line_does_not_wait_for_jax() -> None:
    code = f"""
import sys
from {PACKAGE}.commands import main
try:
    main(["--help"])
except SystemExit as ended:
    print(ended.code, sorted({{"jax", "numpy", "optax", "flax"}} & set(sys.modules)))
"""
    assert said_by(code).splitlines()[-1] == "0 []"


@pytest.mark.slow
def test_public_names_are_listed_and_there_at_first_use() -> None:
    # Before it is used, hard_feature_loss is not loaded, but known.
    code = f"""
import sys, {PACKAGE} as package
print("{PACKAGE}.training.losses" in sys.modules, set(package.__all__) <= set(dir(package)))
print(package.hard_feature_loss.__name__, "{PACKAGE}.training.losses" in sys.modules)
print(all(hasattr(package, name) for name in package.__all__), hasattr(package, "no_such"))
print(package.__version__, "__version__" in dir(package))
"""
    lines = said_by(code).splitlines()
    assert lines[:3] == ["False True", "hard_feature_loss True", "True False"]
    assert lines[3] == f"{version('efficientad-jax')} True"
