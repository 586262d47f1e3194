"""The command ``esper-operator``: settings from the environment, each with a flag, and the process's end."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping

import click

from esper_operator.check import check_command
from esper_operator.health import log_in_json
from esper_operator.process import operate
from esper_operator.settings import PREFIX, READERS, Settings
from esper_runtime.contracts import EsperError, InputError

ENDING_SECONDS = 20.0
"""For the process to end in good order."""
SWITCH_SECONDS = 0.001
"""After which a thread lets another one run: passes and kopf's events are in two, and each waits for both."""

_log = logging.getLogger(__name__)


def main() -> None:
    """The command."""
    command(prog_name="esper-operator")


@click.group(
    invoke_without_command=True,
    help="Carry out the MorphogeneticRuns of a cluster. The chart of Esper sets all of it.",
)
@click.pass_context
def command(context: click.Context, /, **flags: str | None) -> None:
    """Run the operator until SIGTERM; exit code 2 for wrong settings, 1 when it cannot go on."""
    given = {PREFIX + name.upper(): text for name, text in flags.items() if text is not None}
    environment = dict(os.environ) | given
    if context.invoked_subcommand is None:
        sys.exit(run(environment))
    settings = _settings(environment)
    if settings is None:
        sys.exit(2)
    context.obj = settings


command.add_command(check_command)


for _name in READERS:
    command.params.append(
        click.Option(
            [f"--{_name.lower().replace('_', '-')}"],
            metavar="TEXT",
            help=f"Default: the variable {PREFIX}{_name}.",
        )
    )


def run(environment: Mapping[str, str]) -> int:
    """Run with settings from an environment; returns the exit code."""
    settings = _settings(environment)
    if settings is None:
        return 2
    log_in_json(getattr(logging, settings.log_level.upper()))
    sys.setswitchinterval(SWITCH_SECONDS)
    return asyncio.run(_until_told(settings))


def _settings(environment: Mapping[str, str]) -> Settings | None:
    """The settings; None where they are wrong, which is said."""
    try:
        return Settings.from_environment(environment)
    except InputError as error:
        print(error, file=sys.stderr)
        return None


async def _until_told(settings: Settings) -> int:
    work = asyncio.create_task(operate(settings))
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not work.done():
        _log.info("told to end")
        work.cancel()
        await asyncio.wait({work}, timeout=ENDING_SECONDS)
        return 0 if work.cancelled() else _code(work.exception() if work.done() else None)
    return _code(work.exception())


def _code(error: BaseException | None) -> int:
    """The exit code for what ended the operator, which is logged."""
    if error is None:
        return 0
    causes = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
    for cause in causes:
        if isinstance(cause, BaseExceptionGroup):
            _code(cause)
        elif isinstance(cause, EsperError):
            _log.error("%s", cause)
        else:
            _log.error("the operator cannot go on", exc_info=cause)
    return 2 if len(causes) == 1 and isinstance(causes[0], InputError) else 1


if __name__ == "__main__":
    main()
