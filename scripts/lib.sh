# Sourced by setup, demo and test: makes .venv from requirements.lock. Needs neither root nor Docker, and no network
# once .venv is there. Runs under the bash 3.2 of macOS too.

unset CDPATH
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$ROOT" || exit 1

# The two dependencies that publish no wheel; both are pure Python and build with the locked setuptools.
WITHOUT_WHEEL="forbiddenfruit,nkeys"

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

python_fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

python_has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Prints the one command that gets a Python with the venv module on this machine; $1 is a version to prefer.
help_command() {
    local sudo="" version
    [ "$(id -u)" = 0 ] || sudo="sudo "
    if command -v apt-get >/dev/null; then
        for version in $1 3.13 3.12 3.11; do
            if apt-cache show "python$version-venv" >/dev/null 2>&1; then
                printf '%sapt-get install python%s-venv' "$sudo" "$version"
                return
            fi
        done
        printf '%sapt-get update && %sapt-get install python3-venv' "$sudo" "$sudo"
    elif command -v dnf >/dev/null; then
        printf '%sdnf install python3.12' "$sudo"
    elif command -v brew >/dev/null; then
        printf 'brew install python@3.13'
    else
        printf 'GURNEY_PYTHON=/path/to/python3.13 scripts/setup'
    fi
}

# Prints a Python that can make the environment, or says the one command that helps and fails.
choose_python() {
    local candidate half=""
    for candidate in ${GURNEY_PYTHON:+"$GURNEY_PYTHON"} python3 python3.13 python3.12 python3.11; do
        if python_fits "$candidate"; then
            if python_has_venv "$candidate"; then
                printf '%s' "$candidate"
                return
            fi
            half="${half:-$candidate}"
        fi
        # A Python that was asked for by name is not replaced by another.
        [ -z "${GURNEY_PYTHON:-}" ] || break
    done
    if [ -n "$half" ]; then
        say "$half has no venv module. This helps: $(help_command "$(version_of "$half")")"
    elif [ -n "${GURNEY_PYTHON:-}" ]; then
        say "GURNEY_PYTHON=$GURNEY_PYTHON is not a Python 3.11, 3.12 or 3.13. This helps: unset GURNEY_PYTHON"
    else
        say "Gurney needs Python 3.11, 3.12 or 3.13, and there is none on PATH. This helps: $(help_command "")"
    fi
    return 1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Prints a digest of everything that .venv is made from: the given files, the Python and the place (it cannot move).
stamp() {
    "$1" -c 'import hashlib, pathlib, sys
parts = [pathlib.Path(name).read_bytes() for name in sys.argv[2:]]
parts += [sys.version.encode(), sys.argv[1].encode()]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())' "$ROOT" "${@:2}"
}

stamp_is() { [ -f ".venv/$1" ] && [ "$(cat ".venv/$1")" = "$2" ]; }

# True when .venv runs and is not of another Python than the one that was asked for.
venv_runs() {
    python_fits .venv/bin/python || return 1
    [ -z "${GURNEY_PYTHON:-}" ] || [ "$(version_of .venv/bin/python)" = "$(version_of "$GURNEY_PYTHON" 2>/dev/null)" ]
}

pip_install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input "$@"; }

install_locked() {
    local python
    python="$(choose_python)" || exit 1
    say "Setting up .venv with Python $(version_of "$python"): once, half a minute to a few minutes"
    "$python" -m venv --clear .venv || die "could not make .venv with $python"
    # What builds the two without a wheel comes first, by its hash like all else: no build fetches anything itself.
    awk '/^setuptools==/ { on = 1 } on { print; if (!/\\$/) exit }' requirements.lock >.venv/build.lock
    pip_install --require-hashes -r .venv/build.lock &&
        pip_install --require-hashes --no-build-isolation --only-binary ":all:" --no-binary "$WITHOUT_WHEEL" \
            -r requirements.lock ||
        die "could not install requirements.lock: see the lines above; pip's own configuration says where it looks"
    stamp .venv/bin/python requirements.lock >.venv/stamp.lock
}

# Makes or refreshes .venv; a stamp that matches makes it a matter of milliseconds.
setup() {
    if ! venv_runs || ! stamp_is stamp.lock "$(stamp .venv/bin/python requirements.lock)"; then
        install_locked
    fi
    if ! stamp_is stamp.project "$(stamp .venv/bin/python requirements.lock pyproject.toml)"; then
        pip_install --no-deps --no-build-isolation -e . || die "could not install Gurney itself into .venv"
        stamp .venv/bin/python requirements.lock pyproject.toml >.venv/stamp.project
    fi
}
