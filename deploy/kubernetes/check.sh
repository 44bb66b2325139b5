#!/bin/sh
# Checks the manifests beside it and their examples against the schemas of Kubernetes, unknown fields included:
#     deploy/kubernetes/check.sh [VERSION...]
# It installs kubernetes-validate from PyPI into a temporary directory; run by hand, not by `make test`.
set -eu
here=$(dirname "$0")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch"
"$scratch/bin/pip" install --quiet --disable-pip-version-check kubernetes-validate==1.37.0
[ $# -gt 0 ] || set -- 1.28.0 1.37.0
for version; do
    for file in "$here"/namespace.yaml "$here"/csidriver.yaml "$here"/daemonset.yaml "$here"/examples/*.yaml; do
        "$scratch/bin/kubernetes-validate" --strict -k "$version" "$file"
    done
done
