"""`deltarl-dashboard RUNS_DIR`: a read-only page that follows and compares the runs in a folder (docs/DASHBOARD.md)."""
