"""`esper pull`: the model of a run on a cluster, on this machine."""

from pathlib import Path

import click

from esper_runtime.cli.output import notice, output_option, print_json


@click.command(
    epilog="""\b
Examples:
  esper pull mnist1d                            the model, to mnist1d-model/
  esper pull mnist1d --namespace team-a --into models/mnist1d
  esper pull mnist1d --all                      journal, checkpoints and report too, to mnist1d/"""
)
@click.argument("run")
@click.option("--namespace", "-n", metavar="NAME", help="Of the run; default: that of the context.")
@click.option("--context", metavar="NAME", help="Of the kubeconfig; default: the current one.")
@click.option("--into", type=click.Path(path_type=Path), metavar="DIR", help="Folder to be made.")
@click.option("--all", "everything", is_flag=True, help="The run's whole folder, also while it goes on.")
@click.option("--image", metavar="NAME", help="Of the reading pod; default: that of the run's last Job.")
@click.option(
    "--wait",
    "seconds",
    type=click.FloatRange(min=1),
    default=180,
    show_default=True,
    metavar="SECONDS",
    help="For the reading pod.",
)
@output_option
def pull(
    run: str,
    namespace: str | None,
    context: str | None,
    into: Path | None,
    everything: bool,
    image: str | None,
    seconds: float,
    output: str,
) -> None:
    """Get the model of RUN out of a Kubernetes cluster, and check it against its digests.

    It calls kubectl with your rights. Where no pod of the run is left, a small pod reads the run's claim
    for as long as it takes, and is removed.
    """
    from esper_runtime.local.cluster import Kubectl
    from esper_runtime.local.cluster import pull as fetch

    place = into or Path(run if everything else f"{run}-model")
    found = fetch(
        Kubectl(namespace, context),
        run,
        place,
        everything=everything,
        image=image,
        seconds=seconds,
        say=notice,
    )
    if output == "json":
        print_json(
            {
                "path": str(found.path),
                "files": found.files,
                "bytes": found.size,
                "weightsDigest": found.digest,
                "matchesStatus": found.matches_status,
            }
        )
        return
    click.echo(f"{found.path}: {found.files} files, {found.size:,} bytes")
    if found.digest is not None:
        how = {True: "as the run's status says", False: "", None: "the run's status holds none to compare"}
        click.echo(f"weights sha256 {found.digest} ({how[found.matches_status]})")
