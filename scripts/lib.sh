# Sourced by the other scripts: sets PY to a Python that has amc and its development tools.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# compiled modules are kept: a process that compiles torch and its other imports anew takes three times as long to start
unset PYTHONDONTWRITEBYTECODE
if [ -z "${PY:-}" ]; then
  PY="$root/.venv/bin/python"
  stamp="$root/.venv/installed-$(sha256sum pyproject.toml | cut -c1-16)"
  if [ ! -e "$stamp" ]; then
    python3 -m venv "$root/.venv"
    "$PY" -m pip install --quiet --no-compile --editable ".[dev,docs]"
    touch "$stamp"
  fi
fi
# mypy wants the rooms inside the package; at run time amc/__init__.py finds them by itself
for room in envs search reports configs; do
  ln -sfn "../$room" "amc/$room"
done
