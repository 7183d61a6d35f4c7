# Sourced by scripts/demo, scripts/test and scripts/acceptance (bash): makes a virtual environment from
# one of the hashed locks in requirements/, and makes it again only when something it is made of changes.
#
#   source scripts/environment.sh
#   make_environment FOLDER LOCK     e.g. make_environment .venv requirements/run.txt
#
# Afterwards FOLDER/bin/python has the locked packages and imports `mesh` and `nodes` from this clone,
# and FOLDER/bin/mesh is the command line. Nothing outside the clone is written, except pip's cache.
# PYTHON=/path/to/python3 chooses the interpreter; else the newest suitable one on PATH is taken.

infermesh_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Settings of an outer environment that would leak into a new one.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV VIRTUAL_ENV
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s\n' "$*" >&2; }

# Prints the interpreter to use. A name on PATH may be a shim that only fails, so each one is run.
find_python() {
  local candidate found="" check='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))'
  local candidates=(python3.14 python3.13 python3.12 python3.11 python3 python)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    "$candidate" -c "$check" >/dev/null 2>&1 || continue
    found=$candidate
    if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  if [ -n "$found" ]; then
    say "error: $found cannot make virtual environments (its venv or ensurepip module is missing)"
    say "  Debian, Ubuntu, Raspberry Pi OS: sudo apt install python3-venv"
  else
    say "error: no Python from 3.11 to 3.14 among: ${candidates[*]}"
    say "  (python3 is $(python3 --version 2>/dev/null || echo missing))"
    say "  install one (Debian, Ubuntu, Raspberry Pi OS: sudo apt install python3 python3-venv),"
    say "  or name one: PYTHON=/path/to/python3.12 $0"
  fi
  return 1
}

# Prints what an environment is made of; one that was made of the same is kept.
describe_environment() { # PYTHON LOCK
  "$1" -c 'import sys; print(sys.version, sys.executable)'
  printf '%s\n' "$infermesh_root"
  cksum "$2" "$infermesh_root/scripts/environment.sh"
}

# Makes the clone's packages importable and writes bin/mesh. The clone is not "installed": that would need
# a build tool in every environment (scripts/acceptance builds the wheel and tests the real thing).
link_clone() { # FOLDER
  local python=$1/bin/python packages
  packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  printf '%s\n' "$infermesh_root" >"$packages/infermesh-clone.pth"
  # The first lines are shell to /bin/sh and a string to Python: a "#!" line allows neither spaces nor long paths.
  cat >"$1/bin/mesh" <<LAUNCHER
#!/bin/sh
'''exec' "$python" "\$0" "\$@"
' '''
import sys

from nodes.cli import main

sys.exit(main())
LAUNCHER
  chmod +x "$1/bin/mesh"
}

build_environment() { # FOLDER LOCK PYTHON
  local folder=$1 lock=$2 python=$3 options=(--quiet --quiet --require-hashes --no-deps --only-binary ":all:")
  # Without a home folder that can be written (a service account), pip would warn about its cache.
  [ -w "${HOME:-/nonexistent}" ] || options+=(--no-cache-dir)
  say "making ${folder#"$infermesh_root"/} with $("$python" --version) from ${lock#"$infermesh_root"/} (once; a minute or so)"
  rm -f "$folder/made-of"
  "$python" -m venv --clear "$folder" || {
    say "error: cannot make $folder (is the folder yours, and is there space on the disk?)"
    return 1
  }
  "$folder/bin/python" -m pip install "${options[@]}" --requirement "$lock" || {
    say "error: installing ${lock#"$infermesh_root"/} failed (above is what pip says)"
    say "  no network: connect and run this again"
    say "  no matching distribution: this platform ($(uname -sm)) has no ready-made package;"
    say "  64-bit Linux on x86_64 and aarch64 have all of them"
    return 1
  }
  link_clone "$folder"
  describe_environment "$python" "$lock" >"$folder/made-of"
}

make_environment() { # FOLDER LOCK (both relative to the clone)
  local folder=$infermesh_root/$1 lock=$infermesh_root/$2 python
  python=$(find_python) || return 1
  if ! [ -w "$infermesh_root" ]; then
    say "error: $infermesh_root cannot be written by $(id -un); clone the repository into a folder of your own"
    return 1
  fi
  (
    # Two scripts started at once: the second waits, then finds the environment made.
    if command -v flock >/dev/null 2>&1; then flock 9; fi
    if [ "$(describe_environment "$python" "$lock")" != "$(cat "$folder/made-of" 2>/dev/null)" ]; then
      build_environment "$folder" "$lock" "$python" 9<&-
    fi
  ) 9<"$lock"
}

# Runs pytest. Many tests hold real processes against promised times; on a busy machine one of them may lose its turn
# for longer than that. A few failures are therefore run once more, alone and one by one, and named: who fails alone
# as well has failed. Many failures are no accident and are not tried again.
max_run_alone=4
# Thrice what the slowest machine took; a suite that stands still must end by itself.
suite_limit_seconds=1500
run_pytest() { # PYTHON PYTEST-OPTION...
  local python=$1 status=0 failed
  shift
  timeout --foreground --signal=INT --kill-after=60 "$suite_limit_seconds" \
    "$python" -m pytest -q --cache-clear "$@" || status=$?
  [ "$status" != 124 ] || say "== the tests did not end within $suite_limit_seconds s; --verbose shows which one began and did not end"
  failed=$(grep -c '": true' .pytest_cache/v/cache/lastfailed 2>/dev/null) || failed=0
  [ "$status" = 1 ] && [ "$failed" -ge 1 ] && [ "$failed" -le "$max_run_alone" ] || return "$status"
  say "== $failed of the tests failed beside the others; running what failed once more, alone:"
  grep '": true' .pytest_cache/v/cache/lastfailed >&2
  "$python" -m pytest -q --last-failed --last-failed-no-failures none --numprocesses 0 -p no:randomly || return
  say "== passed alone: their failure above is of a busy machine, or of a race that is worth a look"
}
