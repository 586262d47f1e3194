#!/usr/bin/env bash
# Builds Esper's images with buildah, podman or docker; `images/build.sh --help` says how.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
Usage: images/build.sh [OPTIONS] [TARGET...] [-- ENGINE-ARGUMENTS...]

Builds images from images/Dockerfile. Targets: operator, runtime, runtime-cuda; default: operator runtime.

Options:
  --engine NAME      buildah, podman or docker; default: the first that is there
  --registry PREFIX  put before each name, e.g. registry.example.com/ml
  --tag TAG          default: Esper's version
  --base IMAGE       the image to build on, best by digest; default: that of the Dockerfile
  --push             push what was built
  -h, --help         this text

Everything after -- is passed to the engine's build command, for example:
  images/build.sh runtime -- --build-arg PIP_INDEX_URL=https://pypi.example.com/simple
  images/build.sh -- --build-arg TORCH_CPU_INDEX= --volume /etc/pip.conf:/etc/pip.conf:ro

The images are called PREFIX/esper/TARGET:TAG, as charts/esper expects them. Files carry the time of
SOURCE_DATE_EPOCH, or that of the last commit where it is not set.
TEXT
}

die() { echo "images/build.sh: $*" >&2; exit 2; }
value() { [ $# -ge 2 ] && [ -n "$2" ] || die "$1 needs a value; see --help"; }

engine="" registry="" base="" push=""
tag="$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)"
targets=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --engine) value "$@"; engine=$2; shift 2 ;;
    --registry) value "$@"; registry=$2; shift 2 ;;
    --tag) value "$@"; tag=$2; shift 2 ;;
    --base) value "$@"; base=$2; shift 2 ;;
    --push) push=1; shift ;;
    --) shift; break ;;
    operator | runtime | runtime-cuda) targets+=("$1"); shift ;;
    *) die "there is no option or target '$1'; see --help" ;;
  esac
done
[ ${#targets[@]} -gt 0 ] || targets=(operator runtime)

if [ -z "$engine" ]; then
  for each in buildah podman docker; do
    if command -v "$each" >/dev/null; then engine=$each; break; fi
  done
  [ -n "$engine" ] || die "neither buildah, podman nor docker is installed; on Debian: apt-get install buildah"
fi
command -v "$engine" >/dev/null || die "there is no command '$engine'"

export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
arguments=(--file images/Dockerfile --build-arg "VERSION=$tag")
[ -z "$base" ] || arguments+=(--build-arg "BASE=$base")
case $engine in
  buildah | podman) arguments+=(--timestamp "$SOURCE_DATE_EPOCH") ;;
  docker) arguments+=(--build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH") ;;
  *) die "the engine is '$engine'; buildah, podman and docker are known" ;;
esac

for target in "${targets[@]}"; do
  name="${registry:+$registry/}esper/$target:$tag"
  echo "building $name with $engine"
  "$engine" build "${arguments[@]}" "$@" --target "$target" --tag "$name" .
  [ -z "$push" ] || "$engine" push "$name"
done
