"""Running stages: readiness, the Dask coordinator, clusters."""
