"""The scripts here run with packages that this environment does not have."""

collect_ignore_glob = ["in_*.py"]
