"""The run manifest: the MorphogeneticRun resource, the same on one machine and on Kubernetes."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from esper_runtime.contracts.base import ContractModel, Rule, Says
from esper_runtime.contracts.growth import Growth
from esper_runtime.contracts.pods import Deadlines, DnsLabel, PodTemplate, Retry

API_VERSION = "esper.dev/v1alpha1"
KIND = "MorphogeneticRun"

BUILTIN_HOSTS = ("mlp", "cnn1d", "cnn2d", "transformer", "huggingface")
BUILTIN_TASKS = ("mnist1d", "digits", "fashion-mnist", "text", "tokens", "arrays")

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$", max_length=40),
    Says("1 to 40 lower-case letters, digits and '-', first a letter, last no '-'"),
]
Entrypoint = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$", max_length=200
    ),
    Says("'package.module:function' in Python names"),
]
Uri = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Source(ContractModel):
    """A host or a task: a built-in one by name, or a function of yours."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.builtin) != has(self.entrypoint)", "give exactly one of 'builtin' and 'entrypoint'"),
    )

    builtin: str | None = Field(default=None, max_length=64, description="Name of a built-in one.")
    entrypoint: Entrypoint | None = Field(
        default=None, description="`package.module:function`; called with `args`, found on the Python path."
    )
    args: dict[str, Any] = Field(default_factory=dict, max_length=64, description="Keyword arguments.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.builtin is None) == (self.entrypoint is None):
            raise ValueError("give exactly one of 'builtin' and 'entrypoint'")
        return self


class OptimizerName(StrEnum):
    """Optimizers of PyTorch."""

    ADAMW = "AdamW"
    SGD = "SGD"


class ScheduleName(StrEnum):
    """Learning rate over the steps, after the warm-up."""

    CONSTANT = "Constant"
    COSINE = "Cosine"
    LINEAR = "Linear"


class Precision(StrEnum):
    """Autocast type of forward passes; Float32 means no autocast."""

    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"


class Compilation(StrEnum):
    """What of the host is compiled for training: nothing, or each repeated block by itself."""

    NEVER = "Never"
    REGIONS = "Regions"


class Optimizer(ContractModel):
    """Optimizer and its settings."""

    name: OptimizerName = Field(default=OptimizerName.ADAMW, description="AdamW or SGD.")
    learning_rate: float = Field(default=0.003, gt=0, le=100, description="Peak learning rate.")
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="Decoupled (AdamW) or L2 (SGD).")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="AdamW only.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD only.")


class Schedule(ContractModel):
    """Learning-rate schedule over the whole run."""

    name: ScheduleName = Field(default=ScheduleName.COSINE, description="Constant, Cosine or Linear.")
    warmup_steps: int = Field(default=0, ge=0, le=10_000_000, description="Linear rise from 0.")
    final_factor: float = Field(
        default=0.0, ge=0, le=1, description="Last learning rate over the peak (Cosine and Linear)."
    )


class ValidationSettings(ContractModel):
    """When the model is validated."""

    every_steps: int | None = Field(
        default=None, ge=1, description="Default: a fiftieth of the run, at least 1."
    )
    batch_size: int | None = Field(default=None, ge=1, le=1_000_000, description="Default: 500.")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after so many validations without a better loss; default: never.",
    )


class Workers(ContractModel):
    """Processes that train together, each on its part of every batch."""

    count: int = Field(default=1, ge=1, le=64, description="Pods or machines; on one machine: processes.")
    processes_per_worker: int = Field(default=1, ge=1, le=64, description="Ranks in each.")
    timeout_seconds: float = Field(
        default=60,
        ge=1,
        le=3600,
        description="A rank that is silent for so long is given up; longer than writing a checkpoint takes.",
    )

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.count * self.processes_per_worker


class Training(ContractModel):
    """How the model is trained. Give `steps` or `epochs`."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.steps) != has(self.epochs)", "give exactly one of 'steps' and 'epochs'"),
        Rule("self.accumulate <= self.batchSize", "'accumulate' must not be larger than 'batchSize'"),
        Rule(
            "self.workers.count * self.workers.processesPerWorker == 1 || "
            "self.batchSize % (self.workers.count * self.workers.processesPerWorker * self.accumulate) == 0",
            "'batchSize' must be a multiple of workers.count x workers.processesPerWorker x accumulate",
        ),
    )

    steps: int | None = Field(default=None, ge=1, le=100_000_000, description="Optimizer steps.")
    epochs: int | None = Field(default=None, ge=1, le=1_000_000, description="Passes over the training data.")
    batch_size: int = Field(default=100, ge=1, le=1_000_000, description="Examples in an optimizer step.")
    accumulate: int = Field(
        default=1, ge=1, le=10_000, description="Micro-batches that a batch is split into to save memory."
    )
    optimizer: Optimizer = Field(default=Optimizer(), description="Optimizer and its settings.")
    schedule: Schedule = Field(default=Schedule(), description="Learning rate over the run.")
    clip_norm: float | None = Field(default=None, gt=0, description="Largest gradient norm; default: none.")
    precision: Precision = Field(default=Precision.FLOAT32, description="Autocast type of forward passes.")
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute activations again in the backward pass instead of keeping them; for hosts with "
        "gradient_checkpointing_enable(), such as those of `huggingface`.",
    )
    compile: Compilation = Field(
        default=Compilation.NEVER,
        description="Regions: torch.compile each repeated block of the host, for training steps only.",
    )
    random_seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Of weights, data order, dropout.")
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads of torch; default 1, so that results repeat."
    )
    deterministic: bool = Field(default=True, description="Only algorithms that repeat bit for bit.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="cpu", description="auto: cuda where there is one."
    )
    initial_weights: Uri | None = Field(
        default=None, description="safetensors file that the host starts from (its own parameter names)."
    )
    validation: ValidationSettings = Field(default=ValidationSettings(), description="When to validate.")
    workers: Workers = Field(default=Workers(), description="Processes that train together.")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        if self.accumulate > self.batch_size:
            raise ValueError("'accumulate' must not be larger than 'batchSize'")
        ranks, parts = self.workers.ranks, self.workers.ranks * self.accumulate
        if ranks > 1 and self.batch_size % parts:
            raise ValueError(
                f"'batchSize' is the whole batch of all ranks: {self.batch_size} cannot be divided evenly by "
                f"{ranks} ranks x {self.accumulate} micro-batches; give a multiple of {parts}"
            )
        return self


class Checkpointing(ContractModel):
    """Checkpoints of the run."""

    uri: Uri | None = Field(
        default=None,
        description="Where to; any URI that fsspec opens. In an object store the journal is kept with them, "
        "and the run goes on from there on any machine. Default: the run's own folder.",
    )
    every_steps: int | None = Field(default=None, ge=1, description="Default: a tenth of the run.")
    keep: int = Field(default=3, ge=1, le=1000, description="Newest checkpoints that are kept.")
    grace_seconds: float = Field(
        default=30, gt=0, le=3600, description="Time for a last checkpoint after SIGTERM or Ctrl-C."
    )


class OutputFormat(StrEnum):
    """Formats of the finished model."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    TORCH_EXPORT = "torch-export"
    ONNX = "onnx"


class LoggerKind(StrEnum):
    """Dashboards that a run can be logged to, each where it is installed."""

    TENSORBOARD = "TensorBoard"
    MLFLOW = "MLflow"
    WANDB = "WandB"


class Logging(ContractModel):
    """One dashboard that a run is logged to."""

    kind: LoggerKind = Field(description="TensorBoard, MLflow or WandB (offline).")
    uri: Uri | None = Field(
        default=None, description="Folder, or MLflow tracking URI. Default: `logs/` in the run's folder."
    )


class Output(ContractModel):
    """Where the finished model goes."""

    uri: Uri | None = Field(default=None, description="Default: `model/` in the run's folder.")
    formats: tuple[OutputFormat, ...] = Field(
        default=(OutputFormat.SAFETENSORS,), min_length=1, max_length=4, description="Formats to write."
    )
    logging: tuple[Logging, ...] = Field(
        default=(), max_length=3, description="Dashboards that metrics and adaptations are logged to."
    )


class RunBudget(ContractModel):
    """The run stops with a checkpoint, as interrupted, when one of these is used up."""

    wall_seconds: float | None = Field(
        default=None, gt=0, description="Of training, all starts of the run together."
    )
    device_seconds: float | None = Field(
        default=None, gt=0, description="CPU seconds of one rank, all starts of the run together."
    )


class Innovation(ContractModel):
    """Blueprints that are invented for the run while it trains."""

    enabled: bool = Field(
        default=False,
        description="True: Karn invents blueprints for the run's slots, and those that pass Urabrask's tests "
        "may be planted. When they come depends on the library's workers, so that two such runs need not "
        "grow the same. `growth.blueprints` counts for them too; their names begin with `karn-`.",
    )
    blueprints: int = Field(
        default=16,
        ge=1,
        le=256,
        description="Most that are invented for this run; of those that were invented for others and passed, "
        "it takes up as many.",
    )


class RunSpec(ContractModel):
    """What to train, how, and how it may grow."""

    host: Source = Field(description="The model that starts small.")
    task: Source = Field(description="Data, loss and metric.")
    training: Training = Field(description="How it is trained.")
    growth: Growth = Field(default=Growth(), description="When, where and what may grow.")
    innovation: Innovation = Field(default=Innovation(), description="Blueprints invented for it.")
    checkpoint: Checkpointing = Field(default=Checkpointing(), description="Checkpoints.")
    output: Output = Field(default=Output(), description="The finished model.")
    budget: RunBudget = Field(default=RunBudget(), description="Limits of time.")
    queue_name: DnsLabel | None = Field(default=None, description="Kubernetes only: Kueue's local queue.")
    suspend: bool = Field(
        default=False, description="Kubernetes only: true: checkpoint, and no pod is left; false: resume."
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None, ge=0, le=31_536_000, description="Kubernetes only: deleted so long after its end."
    )
    template: PodTemplate = Field(default=PodTemplate(), description="Kubernetes only: the training pods.")
    deadlines: Deadlines = Field(default=Deadlines(), description="Kubernetes only: time limits.")
    retry: Retry = Field(default=Retry(), description="Kubernetes only: what happens after failures.")

    @model_validator(mode="after")
    def _invents_what_it_may_plant(self) -> Self:
        if self.innovation.enabled and not self.growth.blueprints.allows_invented:
            raise ValueError(
                "'innovation.enabled' is true, but 'growth.blueprints' allows no blueprint that is invented: "
                "their names are 'karn-' and 12 hex digits; give 'karn-*' in 'growth.blueprints.include' and "
                "not in 'exclude', or set 'innovation.enabled' to false"
            )
        return self


KUBERNETES_ONLY = (
    "template",
    "queue_name",
    "suspend",
    "deadlines",
    "retry",
    "ttl_seconds_after_finished",
)
"""Fields of the spec that are accepted on one machine and have no effect there."""


class Metadata(ContractModel):
    """Kubernetes metadata; on one machine only the name is used."""

    name: Name = Field(description="Name of the run; its folder on one machine.")
    namespace: Name | None = Field(default=None, description="Kubernetes only.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=64, description="Kubernetes only.")
    annotations: dict[str, str] = Field(default_factory=dict, max_length=64, description="Kubernetes only.")


class MorphogeneticRun(ContractModel):
    """A training whose model grows."""

    api_version: Literal["esper.dev/v1alpha1"] = Field(description="esper.dev/v1alpha1")
    kind: Literal["MorphogeneticRun"] = Field(description="MorphogeneticRun")
    metadata: Metadata = Field(description="Name and labels.")
    spec: RunSpec = Field(description="What to train and how it may grow.")
