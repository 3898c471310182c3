"""The rules that hold everywhere: what hostile input could use, vendor words above the backends, names, sizes.

Each rule is a function from a parsed file to its breaches; the last test feeds each one the code that it forbids.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("hwprofiles", "ops", "kernels", "quant", "backends", "runtime", "serving", "planning", "bench", "commands")
BANNED_MODULES = {"pickle", "cPickle", "cloudpickle", "marshal", "dill", "shelve", "joblib"}
BANNED_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "torch.load": "unpickles",
    "yaml.load": "builds any object: yaml.safe_load",
    "yaml.unsafe_load": "builds any object: yaml.safe_load",
    "yaml.full_load": "builds objects: yaml.safe_load",
    "jinja2.Environment": "is no sandbox: ImmutableSandboxedEnvironment",
    "jinja2.Template": "is no sandbox: ImmutableSandboxedEnvironment",
}
VENDOR_WORD = re.compile(r"(?<![a-z])(cuda|rocm|nvidia|amd|hip)(?![a-z])")
VENDORLESS = ("runtime", "serving", "planning", "bench", "commands", "cli.py")
VAGUE_NAMES = {"util", "utils", "common", "misc", "helper", "helpers"}
MAX_FILE_LINES = 300
MAX_KERNEL_FUNCTION_LINES = 120
MAX_MEDIAN_FUNCTION_LINES = 10
MAX_P90_FUNCTION_LINES = 35
MIN_ANNOTATED = 0.95

Rule = Callable[[ast.Module], Iterator[str]]


def files(*names: str) -> list[Path]:
    found = [[ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")) for name in names]
    return [path for paths in found for path in paths if path.is_file()]


def everything() -> list[Path]:
    return files(*PARTS, "tests", "examples", "containers", *(path.name for path in sorted(ROOT.glob("*.py"))))


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def qualified(tree: ast.Module) -> dict[str, str]:
    """What each imported local name stands for: `from jinja2 import Template as T` gives {"T": "jinja2.Template"}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
    return names


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    names = qualified(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, dot, rest = dotted(node.func).partition(".")
            yield node, names.get(head, head) + dot + rest


def banned_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules = [] if node.level else [node.module or ""]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        yield from (f"{node.lineno}: imports {m}" for m in modules if m.partition(".")[0] in BANNED_MODULES)


def banned_calls(tree: ast.Module) -> Iterator[str]:
    for node, name in calls(tree):
        short = name.replace("jinja2.environment.", "jinja2.").removeprefix("builtins.")
        if short in BANNED_CALLS:
            yield f"{node.lineno}: {short} {BANNED_CALLS[short]}"
        if name.endswith("recv_pyobj"):
            yield f"{node.lineno}: {name} unpickles"
        if any(k.arg == "allow_pickle" and not is_false(k.value) for k in node.keywords):
            yield f"{node.lineno}: {name} with allow_pickle"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def remote_code(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword | ast.arg | ast.Constant):
            word = node.value if isinstance(node, ast.Constant) else node.arg
            if word == "trust_remote_code":
                yield f"{node.lineno}: trust_remote_code"


def bare_except(tree: ast.Module) -> Iterator[str]:
    handlers = (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    yield from (f"{node.lineno}: bare except" for node in handlers if node.type is None)


def vendor_conditions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        tests: list[ast.expr | ast.pattern] = (
            [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert) else []
        )
        tests += node.ifs if isinstance(node, ast.comprehension) else []
        tests += [node.subject, *(case.pattern for case in node.cases)] if isinstance(node, ast.Match) else []
        for test in tests:
            if word := VENDOR_WORD.search(ast.unparse(test).lower()):
                yield f"{test.lineno}: a condition on {word.group()!r}"


def breaches(rule: Rule, paths: list[Path]) -> list[str]:
    parsed = ((path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths)
    return [f"{path.relative_to(ROOT)}:{breach}" for path, tree in parsed for breach in rule(tree)]


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def annotated(path: Path) -> list[bool]:
    """For each argument of each function (self and cls left out), whether it says its type."""
    given = (a for f in functions(path) for a in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs])
    return [argument.annotation is not None for argument in given if argument.arg not in {"self", "cls"}]


@pytest.mark.parametrize("rule", [banned_imports, banned_calls, bare_except], ids=lambda rule: rule.__name__)
def test_rule_holds_everywhere(rule: Rule) -> None:
    assert breaches(rule, everything()) == []


def test_no_remote_code_in_the_package() -> None:
    assert breaches(remote_code, files(*PARTS, "cli.py")) == []


def test_no_vendor_word_in_a_condition_above_the_backends() -> None:
    training = ROOT / "runtime" / "embedded"  # programs apart: they trained the embedded model, and are not shipped
    assert breaches(vendor_conditions, [path for path in files(*VENDORLESS) if training not in path.parents]) == []


def test_no_file_has_a_vague_name() -> None:
    assert [path for path in everything() if path.stem.strip("_") in VAGUE_NAMES] == []


def test_files_stay_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(*PARTS, "cli.py")}
    long = {path.relative_to(ROOT).as_posix(): n for path, n in lines.items() if n > MAX_FILE_LINES}
    assert {name: n for name, n in long.items() if not name.startswith("kernels/")} == {}


def test_functions_stay_short() -> None:
    lengths = [length(f) for path in files(*(p for p in PARTS if p != "kernels"), "cli.py") for f in functions(path)]
    assert median(lengths) <= MAX_MEDIAN_FUNCTION_LINES
    assert quantiles(lengths, n=10)[-1] <= MAX_P90_FUNCTION_LINES
    kernels = [(path, f) for path in files("kernels") for f in functions(path)]
    assert [(path.name, f.name) for path, f in kernels if length(f) > MAX_KERNEL_FUNCTION_LINES] == []


def test_arguments_say_their_types() -> None:
    said = [answer for path in files(*(p for p in PARTS if p != "kernels"), "cli.py") for answer in annotated(path)]
    assert sum(said) / len(said) >= MIN_ANNOTATED


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (banned_imports, "import pickle"),
        (banned_imports, "def f():\n    from joblib import load"),
        (banned_imports, "import dill._dill as d"),
        (banned_calls, "eval(text)"),
        (banned_calls, "exec(text)"),
        (banned_calls, "torch.load(path, weights_only=True)"),
        (banned_calls, "from torch import load\nload(path)"),
        (banned_calls, "import torch as t\nt.load(path)"),
        (banned_calls, "np.load(path, allow_pickle=True)"),
        (banned_calls, "np.load(path, allow_pickle=flag)"),
        (banned_calls, "yaml.load(text, Loader=yaml.SafeLoader)"),
        (banned_calls, "import jinja2\njinja2.Environment()"),
        (banned_calls, "from jinja2 import Template as T\nT(text)"),
        (banned_calls, "socket.recv_pyobj()"),
        (remote_code, "AutoModel.from_pretrained(name, trust_remote_code=False)"),
        (remote_code, "def load(name, trust_remote_code): ..."),
        (bare_except, "try:\n    f()\nexcept:\n    pass"),
        (vendor_conditions, "if torch.cuda.is_available():\n    pass"),
        (vendor_conditions, "if profile.vendor == 'AMD':\n    pass"),
        (vendor_conditions, "x = 1 if is_rocm() else 2"),
        (vendor_conditions, "y = [d for d in devices if d.name.startswith('nvidia-')]"),
        (vendor_conditions, "match vendor:\n    case 'hip':\n        pass"),
    ],
)
def test_a_rule_sees_what_it_forbids(rule: Rule, source: str) -> None:
    assert len(list(rule(ast.parse(source)))) >= 1


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (banned_imports, "from . import pickle"),
        (banned_calls, "model.eval()"),
        (banned_calls, "np.load(path, allow_pickle=False)"),
        (banned_calls, "from jinja2.sandbox import ImmutableSandboxedEnvironment as E\nE()"),
        (vendor_conditions, "if chip and family and clamd:\n    run('cuda')"),
    ],
)
def test_a_rule_lets_pass_what_it_should(rule: Rule, source: str) -> None:
    assert list(rule(ast.parse(source))) == []
