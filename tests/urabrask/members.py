"""The corpus of the gauntlet: kernels that must be rejected, each by the check named with it, and good ones.

All are real archives with a valid signature of Tezzeret.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from esper_runtime.artifact import KeyRing, artifact_files
from esper_runtime.blueprint import catalogue, sample_slots
from esper_runtime.contracts import Blueprint, InterfaceKind, Node, Pipeline, Signed
from tests.urabrask.archives import sign_files, signed_archive, slots_for, spec_of
from tests.urabrask.native import TENSORS, WIDTH, graph, parts

Made = tuple[Path, Signed]


@dataclass(frozen=True)
class Bad:
    """A kernel that must be rejected.

    Attributes:
        name: what it does.
        check: that must fail.
        make: the archive, put into a folder.
        alone: whether no other check may fail.
        native: whether it has native code of its own.
    """

    name: str
    check: str
    make: Callable[[Path, KeyRing], Made]
    alone: bool = False
    native: bool = False


def _native(
    name: str,
    check: str,
    *,
    on_load: str = "",
    on_call: str = "",
    output: str = "",
    gradient: str = "",
    alone: bool = False,
    forward: dict[str, str] | None = None,
    backward: dict[str, str] | None = None,
    learned: tuple[str, ...] = TENSORS,
    tensors: tuple[str, ...] = TENSORS,
) -> Bad:
    """A compiled kernel whose forward part does a deed on load, on calls or to its output."""
    first = {"ON_LOAD": on_load, "ON_CALL": on_call, "OUTPUT": output, **(forward or {})}
    second = {"GRADIENT": gradient, **(backward or {})}

    def make(folder: Path, keyring: KeyRing) -> Made:
        made = parts(
            folder / "gcc",
            forward={name: value for name, value in first.items() if value},
            backward={name: value for name, value in second.items() if value},
            learned=learned,
            tensors=tensors,
        )
        return _compiled(folder, keyring, made)

    return Bad(name, check, make, alone, native=True)


def _compiled(folder: Path, keyring: KeyRing, files: dict[str, bytes], *, trains: bool = True) -> Made:
    blueprint = graph()
    spec = spec_of(blueprint, slots_for(blueprint, WIDTH, WIDTH), Pipeline.STANDARD)
    return signed_archive(folder, keyring, spec, blueprint, files, trains=trains)


def honest(folder: Path, keyring: KeyRing) -> Made:
    """The compiled kernel without any deed."""
    return _compiled(folder, keyring, parts(folder / "gcc"))


def _graph(name: str, check: str, blueprint: Blueprint) -> Bad:
    def make(folder: Path, keyring: KeyRing) -> Made:
        return signed_archive(folder, keyring, spec_of(blueprint), blueprint)

    return Bad(name, check, make)


def powers(name: str, times: int, operator: str | None = None) -> Blueprint:
    """A linear map, then its output multiplied with itself ``times`` times, each time squaring it."""
    nodes = [Node(id="hidden", op="linear", inputs=("input",), attributes={"width": "Cin"})]
    last = "hidden"
    if operator is not None:
        nodes.append(Node(id="bounded", op=operator, inputs=(last,)))
        last = "bounded"
    for number in range(times):
        nodes.append(Node(id=f"square{number}", op="multiply", inputs=(last, last)))
        last = f"square{number}"
    nodes.append(Node(id="tail", op="linear", inputs=(last,), attributes={"width": "Cout", "bias": False}))
    return Blueprint(name=name, interface=InterfaceKind.FEATURES, nodes=tuple(nodes), output="tail")


def _another_graph(folder: Path, keyring: KeyRing) -> Made:
    blueprint = catalogue()["mlp"]
    return signed_archive(folder, keyring, spec_of(blueprint), catalogue()["mlp-double"])


def _other_claim(folder: Path, keyring: KeyRing) -> Made:
    blueprint = catalogue()["mlp"]
    spec = spec_of(blueprint)
    return sign_files(folder, keyring, spec, artifact_files(spec, blueprint, trains=False), trains=True)


def _unlisted_file(folder: Path, keyring: KeyRing) -> Made:
    blueprint = catalogue()["mlp"]
    spec = spec_of(blueprint)
    files = artifact_files(spec, blueprint, trains=True) | {"extra": b"x"}
    return sign_files(folder, keyring, spec, files)


def _no_parts(folder: Path, keyring: KeyRing) -> Made:
    return _compiled(folder, keyring, {})


def _no_library(folder: Path, keyring: KeyRing) -> Made:
    made = parts(folder / "gcc")
    return _compiled(folder, keyring, made | {"forward/model.so": b"not a library" * 100})


def _no_interface(folder: Path, keyring: KeyRing) -> Made:
    made = parts(folder / "gcc", forward={"AOTInductorModelContainerRun": "another_name"})
    return _compiled(folder, keyring, made)


def _other_width(folder: Path, keyring: KeyRing) -> Made:
    """No slot of its class can take its blueprint: heads that do not divide the width."""
    blueprint = Blueprint(
        name="groups",
        interface=InterfaceKind.IMAGE,
        nodes=(
            Node(
                id="tail",
                op="conv",
                inputs=("input",),
                attributes={"width": "Cout", "kernel": 3, "groups": 3},
            ),
        ),
        output="tail",
    )
    spec = spec_of(blueprint, slots_for(blueprint, 16, 16))
    return signed_archive(folder, keyring, spec, blueprint)


PORT = 47808
"""Of this machine, where the bad ones try to connect."""

EVIL = (Path("/tmp/esper-evil"), Path("/dev/shm/esper-evil"))
"""Files that the bad ones try to write."""

_ALL_Y = "for (int64_t i = 0; i < rows * width; i++)"

GRAPHS = (
    _graph("a graph that overflows on large inputs", "finite", powers("power-32", 5)),
    _graph("a graph that overflows on inputs of any size", "finite", powers("power-256", 8)),
    _graph("a graph whose output vanishes", "scale", powers("sigmoid-power-64", 6, "sigmoid")),
    _graph("a graph whose output all but vanishes", "scale", powers("tanh-power-256", 8, "tanh")),
)

ARCHIVES = (
    Bad("another graph than the one it is named by", "load", _another_graph),
    Bad("a manifest that claims something else", "load", _other_claim),
    Bad("a file that its manifest does not list", "load", _unlisted_file),
    Bad("a compiled kernel without parts", "load", _no_parts),
    Bad("a part that is no library", "load", _no_library),
    Bad("a library without the interface", "crash", _no_interface),
    Bad("a graph that fits no slot of its class", "load", _other_width),
    _native("arguments of another body", "load", tensors=("tail.bias", "tail.weight")),
)

ON_LOAD = (
    _native("reads the passwords on load", "files", on_load='read_file("/etc/passwd")', alone=True),
    _native("reads another process on load", "files", on_load='read_file("/proc/1/environ")', alone=True),
    _native("writes to /tmp on load", "files", on_load='write_file("/tmp/esper-evil")', alone=True),
    _native("writes to /dev/shm on load", "files", on_load='write_file("/dev/shm/esper-evil")', alone=True),
    _native("links out of its folder on load", "files", on_load='make_link("way-out")', alone=True),
    _native("deletes a file on load", "files", on_load='remove_file("/etc/hostname")', alone=True),
    _native("opens a connection on load", "network", on_load="go_online(47808)", alone=True),
    _native("opens a local socket on load", "network", on_load="go_local()", alone=True),
    _native("forks on load", "processes", on_load="fork_away()", alone=True),
    _native("starts a thread that sleeps on load", "processes", on_load="start_thread()", alone=True),
    _native("starts a program on load", "processes", on_load="execute()", alone=True),
    _native("kills its parent on load", "processes", on_load="kill_parent()", alone=True),
    _native("kills all that it may on load", "processes", on_load="kill_all()", alone=True),
    _native("attaches itself to its parent on load", "processes", on_load="trace()", alone=True),
    _native("takes 64 GiB at once on load", "memory", on_load="take_at_once()", alone=True),
    _native("takes all memory bit by bit on load", "memory", on_load="take_bit_by_bit()", alone=True),
    _native("floods standard output on load", "output", on_load="flood()", alone=True),
    _native("never comes back from loading", "hang", on_load="spin()", alone=True),
    _native("sleeps for ever on load", "hang", on_load="doze()", alone=True),
    _native("crashes on load", "crash", on_load="stumble()", alone=True),
    _native("aborts on load", "crash", on_load="abort()", alone=True),
    _native("leaves on load", "crash", on_load="leave()", alone=True),
    _native("says in the sandbox's words that all is well", "shape", on_load="forge()"),
    _native("changes how numbers are rounded", "globals", on_load="round_up()"),
    _native("has tiny numbers flushed to zero", "globals", on_load="flush_tiny()"),
    _native("ignores signals", "globals", on_load="catch_signals()"),
    _native("changes the environment", "globals", on_load="rename_home()"),
)

ON_CALL = (
    _native("yields NaN", "finite", output="y[0] = NAN"),
    _native(
        "yields infinity for large inputs alone", "finite", output=f"{_ALL_Y} if (x[i] > 500) y[i] = INFINITY"
    ),
    _native("explodes", "scale", output=f"{_ALL_Y} y[i] *= 1e20f"),
    _native("vanishes", "scale", output=f"{_ALL_Y} y[i] *= 1e-20f"),
    _native("is not zero at birth", "birth", output="y[0] += 1e-3f"),
    _native("yields another shape", "shape", output="made = fresh(2, rows, width + 1)"),
    _native("yields a vector", "shape", output="made = fresh(1, 1, rows * width)"),
    _native("yields another dtype", "dtype", forward={"DTYPE": "aoti_torch_dtype_int32()"}),
    _native(
        "yields a tensor of another device", "device", forward={"DEVICE": "aoti_torch_device_type_meta()"}
    ),
    _native("yields something else each time", "determinism", output="y[0] += chance()"),
    _native("changes its input", "inputs", output="x[0] += 1"),
    _native(
        "hands out its input's memory",
        "aliasing",
        output="memcpy(x, y, rows * width * 4); aoti_torch_new_tensor_handle(in[0], &made)",
    ),
    _native(
        "hands out the same memory each time",
        "aliasing",
        forward={
            "OUTPUT": "static float kept[65536]; memcpy(kept, y, rows * width * 4);"
            "int64_t z[2] = {rows, width}, t[2] = {width, 1};"
            "aoti_torch_create_tensor_from_blob(kept, 2, z, t, 0, DTYPE, DEVICE, 0, &made)"
        },
    ),
    _native("changes its weights", "state", output="w[0] = 0.5f"),
    _native("mixes the examples of a batch", "batch", output="if (rows > 1) y[0] += 1e-3f * y[width]"),
    _native("is off by a thousandth", "values", output=f"{_ALL_Y} y[i] *= 1.001f"),
    _native("is off for large inputs alone", "values", output=f"{_ALL_Y} if (x[i] > 500) y[i] = 0"),
    _native("leaks 64 bytes a call", "leaks", output="leak(64)"),
    _native("leaks a page a call", "leaks", output="leak(4096)"),
    _native("leaks mappings", "leaks", output="leak_mapping()"),
    _native("leaks tensors", "leaks", output="fresh(2, rows, width)"),
    _native("leaks in its backward pass", "leaks", gradient="leak(512)"),
    _native("hangs at its twentieth call", "hang", on_call="if (calls == 20) spin()"),
    _native("forks at its twentieth call", "processes", on_call="if (calls == 20) fork_away()"),
    _native(
        "reads a file at its twentieth call", "files", on_call='if (calls == 20) read_file("/etc/shadow")'
    ),
    _native(
        "opens a connection at its twentieth call", "network", on_call="if (calls == 20) go_online(47808)"
    ),
    _native("floods standard output when called", "output", on_call="flood()"),
    _native("takes too much memory when called", "memory", on_call="take_bit_by_bit()"),
    _native("crashes when called", "crash", on_call="stumble()"),
    _native("yields a wrong gradient", "gradients", gradient=f"{_ALL_Y} gx[i] *= 2"),
    _native("yields a wrong gradient of its weights", "gradients", gradient="gw[1] += 1"),
    _native("yields a gradient that is not finite", "finite", gradient="gb[0] = NAN"),
    _native(
        "yields no gradient of its bias", "gradients", learned=("tail.weight",), backward={"RETURNED": "2"}
    ),
    _native("yields fewer gradients than it says", "run", backward={"RETURNED": "2"}),
    _native("yields a gradient of another shape", "run", gradient="made[0] = fresh(2, rows, width + 1)"),
    _native("writes a file in its backward pass", "files", gradient='write_file("/tmp/esper-evil")'),
)

BAD: tuple[Bad, ...] = (*GRAPHS, *ARCHIVES, *ON_LOAD, *ON_CALL)

_BANDS = ((1, 16), (17, 64), (65, 256))


@dataclass(frozen=True)
class Good:
    """A kernel that must pass."""

    name: str
    blueprint: Blueprint
    band: tuple[int, int]

    def make(self, folder: Path, keyring: KeyRing) -> Made:
        """Its archive."""
        slots = slots_for(self.blueprint, *self.band)
        return signed_archive(folder, keyring, spec_of(self.blueprint, slots), self.blueprint)


def good() -> list[Good]:
    """Every blueprint of the catalogue in every band of widths in which it fits a slot."""
    return [
        Good(f"{name} {least}-{most}", blueprint, (least, most))
        for name, blueprint in catalogue().items()
        for least, most in _BANDS
        if sample_slots(blueprint, slots_for(blueprint, least, most))
    ]
