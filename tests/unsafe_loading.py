"""Finding in Python source what runs code that it was given as data, under whatever name it was imported."""

import ast
from dataclasses import dataclass

MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
"""Modules that load by running; not to be imported at all."""

PICKLING = {"multiprocessing", "concurrent.futures.process"}
"""Modules that unpickle what another process sends."""

NAMES = {
    "builtins.eval": "eval",
    "builtins.exec": "exec",
    "builtins.__import__": "__import__",
    "torch.jit.load": "torch.jit.load",
    "torch.export.load": "torch.export.load",
    "torch.package.PackageImporter": "torch.package",
    "torch.hub.load": "torch.hub",
    "torch.compiler.load_cache_artifacts": "inductor cache",
    "torch.ops.load_library": "native code",
    "torch.classes.load_library": "native code",
    "torch._inductor.aoti_load_package": "native code",
    "torch._export.aot_load": "native code",
    "ctypes.cdll.LoadLibrary": "native code",
    "ctypes.PyDLL": "native code",
    "yaml.load": "yaml.load",
    "yaml.load_all": "yaml.load",
    "yaml.unsafe_load": "yaml.load",
    "yaml.unsafe_load_all": "yaml.load",
    "yaml.full_load": "yaml.load",
    "yaml.full_load_all": "yaml.load",
    "os.system": "shell",
    "os.popen": "shell",
    "subprocess.getoutput": "shell",
    "subprocess.getstatusoutput": "shell",
    "asyncio.create_subprocess_shell": "shell",
    "runpy.run_path": "code file",
    "runpy.run_module": "code file",
    "torch.distributed.broadcast_object_list": "pickle",
    "torch.distributed.all_gather_object": "pickle",
    "torch.distributed.gather_object": "pickle",
    "torch.distributed.scatter_object_list": "pickle",
    "torch.distributed.recv_object_list": "pickle",
}
"""What must not be called, nor handed on under another name."""

BELOW = {"torch._C._aoti": "native code"}
"""Name spaces of which nothing may be used."""

METHODS = {"exec_module": "code file", "aoti_load_package": "native code", "load_library": "native code"}
"""Methods that must not be called, whatever they are called on."""


@dataclass(frozen=True)
class Finding:
    """A place in a source and the rule that it breaks."""

    line: int
    rule: str


def findings(source: str) -> list[Finding]:
    """All places that load unsafely, in order."""
    visitor = _Visitor()
    visitor.visit(ast.parse(source))
    return sorted(visitor.found, key=lambda finding: (finding.line, finding.rule))


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: set[Finding] = set()
        self._known: dict[str, str] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._module(node, alias.name)
            bound = alias.asname or alias.name.partition(".")[0]
            self._known[bound] = alias.name if alias.asname else bound

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        self._module(node, module)
        for alias in node.names:
            full = f"{module}.{alias.name}"
            self._module(node, full)
            self._known[alias.asname or alias.name] = full
            self._name(node, full)
            if alias.name == "*" and any(name.startswith(module + ".") for name in (*NAMES, *BELOW)):
                self._add(node, f"from {module} import *")

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in ("eval", "exec", "__import__", "__builtins__") and node.id not in self._known:
            self._add(node, node.id)
        self._name(node, self._known.get(node.id, ""))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        full = self._full(node)
        if full is not None:
            self._name(node, full)
        if node.attr in METHODS:
            self._add(node, METHODS[node.attr])
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = self._full(node.func) or ""
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name == "torch.load":
            if _constant(keywords.get("weights_only")) is not True:
                self._add(node, "torch.load")
            for argument in (*node.args, *keywords.values()):
                self.visit(argument)
            return
        if (
            name in ("numpy.load", "numpy.loads")
            and _constant(keywords.get("allow_pickle"), False) is not False
        ):
            self._add(node, "pickle")
        if name == "ctypes.CDLL":
            if not node.args or not (isinstance(node.args[0], ast.Constant) and node.args[0].value is None):
                self._add(node, "native code")
            for argument in (*node.args, *keywords.values()):
                self.visit(argument)
            return
        if "shell" in keywords and _constant(keywords["shell"]) is not False:
            self._add(node, "shell")
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1:
            attribute = _constant(node.args[1])
            base = self._full(node.args[0])
            if isinstance(attribute, str):
                self._name(node, f"{base}.{attribute}")
                if f"{base}.{attribute}" in ("torch.load", "ctypes.CDLL"):
                    self._add(node, "torch.load" if base == "torch" else "native code")
                if attribute in METHODS:
                    self._add(node, METHODS[attribute])
        if name == "importlib.import_module" and node.args:
            self._module(node, str(_constant(node.args[0])))
        self.generic_visit(node)

    def _module(self, node: ast.AST, name: str) -> None:
        if name.partition(".")[0] in MODULES:
            self._add(node, "pickle" if name != "marshal" else "marshal")
        if name in PICKLING or name.startswith("multiprocessing."):
            self._add(node, "pickle")

    def _name(self, node: ast.AST, full: str) -> None:
        if full in NAMES:
            self._add(node, NAMES[full])
        if full == "torch.load":  # calls are looked at before their names are
            self._add(node, "torch.load")
        if full == "ctypes.CDLL" or full.startswith("ctypes.cdll."):
            self._add(node, "native code")
        for space, rule in BELOW.items():
            if full == space or full.startswith(space + "."):
                self._add(node, rule)

    def _full(self, node: ast.AST) -> str | None:
        """The dotted name of what an expression names, by the imports of its file."""
        if isinstance(node, ast.Name):
            return self._known.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            base = self._full(node.value)
            return None if base is None else f"{base}.{node.attr}"
        return None

    def _add(self, node: ast.AST, rule: str) -> None:
        self.found.add(Finding(node.lineno, rule))  # type: ignore[attr-defined]


def _constant(node: ast.AST | None, absent: object = None) -> object:
    if node is None:
        return absent
    return node.value if isinstance(node, ast.Constant) else _Unknown


class _Unknown:
    """Stands for a value that the source does not show."""
