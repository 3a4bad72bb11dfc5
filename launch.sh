#!/usr/bin/env bash
# Makes the environment of this folder where it is missing, then runs in it.
set -euo pipefail

usage() {
  cat <<'END'
Usage:
  ./launch.sh --config=configs/circle.py [flags]   train and evaluate
  ./launch.sh check_data --data=FOLDER [flags]     look for faults in data
  ./launch.sh selftest --config=FILE [flags]       check a loss on N devices
  ./launch.sh plan --config=FILE --device=NAME [flags]
                                                   memory and hours of a config
  ./launch.sh evaluate --workdir=RUN --config.data.name=NAME [flags]
                                                   measure a run on other data
  ./launch.sh embed --help                         make an index of images
  ./launch.sh search --help                        search it by images; see
                                                   also calibrate, export_index
  ./launch.sh export_model --help                  weights and embedder of a run
                                                   for other programs
  ./launch.sh compare RUN_A RUN_B [flags]          which of two runs is better
  ./launch.sh test [pytest arguments]              run the test suite
  ./launch.sh tensorboard [its arguments]          show the latest run in runs/
  ./launch.sh help                                 print this

The first start makes .venv beside this script and installs requirements.txt
where an NVIDIA GPU is visible, requirements-cpu.txt elsewhere; later starts
install nothing until those files change. All flags go to
`python -m retrieval_jax.main` as they are (its own list: ./launch.sh --help).
File names in flags, and runs/, are taken from the folder you call it from.

Needs Python 3.11, 3.12 or 3.13: python3, or python3.13, python3.12, python3.11
where python3 is another version. PYTHON=/path/to/python ./launch.sh ... names
one. Delete .venv to install everything anew.
END
}

fail() {
  echo "launch.sh: $*" >&2
  exit 2
}

repo="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
venv="$repo/.venv"

# Both marks live inside the environment, so that they go where it goes.
made="$venv/launch.made"              # this script made it, and may remove it
incomplete="$venv/launch.incomplete"  # an installation was begun, not finished

# Prints a Python's version, `3.11`; nothing where it cannot run.
version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

fits() {
  [[ "$1" == 3.11 || "$1" == 3.12 || "$1" == 3.13 ]]
}

# Sets `python` to an interpreter that can make the environment: never one of an
# environment, which may be the one to be removed.
find_python() {
  local candidates=(python3 python3.13 python3.12 python3.11) version seen=''
  if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
  for python in "${candidates[@]}"; do
    if ! version="$(version_of "$python")"; then
      if [[ -n "${PYTHON:-}" ]]; then seen=", $python, which does not run"; fi
    elif ! fits "$version"; then
      seen+=", $python, which is $version"
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
      seen+=", $python without venv (on Debian: apt install python$version-venv)"
    else
      python="$("$python" -c 'import sys; print(sys._base_executable)')"
      return
    fi
  done
  seen="${seen#, }"
  fail "needs Python >=3.11,<3.14 but found ${seen:-no python3};" \
    "install one or name it: PYTHON=/path/to/python3.12 ./launch.sh"
}

# Whether the environment's Python runs, is still the one that its packages were
# installed for, and is of the version wanted.
venv_fits() {
  local version
  version="$(version_of "$venv/bin/python")" && fits "$version" &&
    [[ -d "$venv/lib/python$version" ]] &&
    [[ -z "${PYTHON:-}" || "$(version_of "$PYTHON")" == "$version" ]]
}

gpu_visible() {
  [[ "$(nvidia-smi -L 2>/dev/null)" == *'GPU '* ]]
}

# Sets `files`, the requirements of a purpose (`run` or `test`).
requirements_of() {
  if [[ "$1" == test ]]; then
    files=(requirements-test.txt)
  elif [[ "$2" == gpu ]]; then
    files=(requirements-cpu.txt requirements.txt)
  else
    files=(requirements-cpu.txt)
  fi
}

# Whether the environment holds the requirements of a purpose as they are now.
installed() {
  [[ ! -e "$incomplete" && -e "$venv/launch.$1" ]] &&
    [[ "$(< "$venv/launch.$1")" == "$(cd "$repo" && cat "${files[@]}")" ]]
}

# Whether nothing has to be installed for a purpose. What was installed for a
# GPU serves without one too, which also spares the question whether it is there
# (shared home folders; nvidia-smi can take a second).
ready() {
  venv_fits || return 1
  requirements_of "$1" gpu
  if installed "$1"; then return; fi
  if [[ "$1" == run ]] && gpu_visible; then return 1; fi
  requirements_of "$1" cpu
  installed "$1"
}

# Installs the requirements of a purpose, alone: a second start waits and then
# finds the work done. Runs in a subshell, whose end frees the lock.
prepare() (
  local file arguments=() quiet=''
  python="$venv/bin/python"
  venv_fits || find_python
  exec 9>> "$venv.lock"
  # The lock belongs to the open file, so it outlives this Python; macOS has no
  # flock command.
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
  if ready "$1"; then return; fi

  if [[ -e "$venv" && ! -e "$made" ]]; then
    venv_fits || fail "$venv is not this script's and does not fit" \
      "(Python >=3.11,<3.14 or \$PYTHON's version); move it away"
  elif [[ -e "$incomplete" ]] || ! venv_fits; then
    find_python
    rm -rf "$venv"
    mkdir "$venv"
    touch "$made" "$incomplete"
    "$python" -m venv "$venv"
  fi

  if [[ "$1" == run ]] && gpu_visible; then
    requirements_of "$1" gpu
  else
    requirements_of "$1" cpu
  fi
  for file in "${files[@]}"; do arguments+=(-r "$repo/$file"); done
  if [[ ! -t 1 ]]; then quiet=-qq; fi
  echo "launch.sh: installing ${files[*]} into $venv (takes minutes, once)" >&2
  touch "$incomplete"
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
    $quiet "${arguments[@]}" || {
    echo 'launch.sh: the installation failed, see above; the same command' \
      'takes it up again' >&2
    exit 1
  }
  (cd "$repo" && cat "${files[@]}") > "$venv/launch.$1"
  rm "$incomplete"
)

ensure() {
  ready "$1" || prepare "$1"
}

# Prints the folder of the newest TensorBoard events under runs/.
latest_run() {
  local file latest=''
  for file in runs/*/events.out.tfevents.*; do
    if [[ -e "$file" && ( -z "$latest" || "$file" -nt "$latest" ) ]]; then
      latest="$file"
    fi
  done
  [[ -n "$latest" ]] && dirname "$latest"
}

# Modules are found from any folder, while file names stay the caller's.
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"

case "${1:-}" in
  help)
    usage
    ;;
  test)
    ensure run
    ensure test
    cd "$repo"
    exec "$venv/bin/python" -m pytest "${@:2}"
    ;;
  calibrate | check_data | compare | embed | evaluate | export_index | \
    export_model | plan | search | selftest)
    ensure run
    exec "$venv/bin/python" -m "retrieval_jax.$1" "${@:2}"
    ;;
  tensorboard)
    if [[ " $*" != *' --logdir'* ]]; then
      run="$(latest_run)" || fail "no run with TensorBoard events in" \
        "$PWD/runs; train one first, or name its folder: --logdir=DIR"
      echo "launch.sh: TensorBoard of $run" >&2
      set -- "$@" --logdir="$run"
    fi
    ensure run
    # Without them TensorFlow starts with a screenful about its own build.
    export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
    export TF_ENABLE_ONEDNN_OPTS="${TF_ENABLE_ONEDNN_OPTS:-0}"
    exec "$venv/bin/python" -m tensorboard.main "${@:2}"
    ;;
  *)
    ensure run
    exec "$venv/bin/python" -m retrieval_jax.main "$@"
    ;;
esac
