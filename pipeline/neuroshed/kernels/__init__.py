"""Arrays in, arrays out: watershed, region graph, agglomeration, relabelling, metrics. Knows no store, no path, no
Dask.
"""
