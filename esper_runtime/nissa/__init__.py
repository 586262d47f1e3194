"""Nissa shows what a run did: it verifies the journal and tells it as a summary, an explanation and a report.

Everything shown comes from the journal alone, so that it can be made again at any time; what Prometheus asks
for comes from the processes as they run. Imports no torch.
"""

from esper_runtime.nissa.explain import explain
from esper_runtime.nissa.http import StatusServer, listen_address
from esper_runtime.nissa.journal import (
    Finding,
    JournalScan,
    effective,
    read_journal,
    scan_journal,
    verify_journal,
)
from esper_runtime.nissa.kept_journal import KeptJournal
from esper_runtime.nissa.metrics import Exposition, TrainingMetrics, WorkerMetrics
from esper_runtime.nissa.recording import BEFORE_START, Recording, completed, recording_of
from esper_runtime.nissa.report import render_report
from esper_runtime.nissa.steering import Held, held, in_words
from esper_runtime.nissa.summary import RunState, RunSummary, summarise
from esper_runtime.nissa.tally import Tally
from esper_runtime.nissa.words import Metric, count, duration, macs

__all__ = [
    "BEFORE_START",
    "Exposition",
    "Finding",
    "Held",
    "JournalScan",
    "KeptJournal",
    "Metric",
    "Recording",
    "RunState",
    "RunSummary",
    "StatusServer",
    "Tally",
    "TrainingMetrics",
    "WorkerMetrics",
    "completed",
    "count",
    "duration",
    "effective",
    "explain",
    "held",
    "in_words",
    "listen_address",
    "macs",
    "read_journal",
    "recording_of",
    "render_report",
    "scan_journal",
    "summarise",
    "verify_journal",
]
