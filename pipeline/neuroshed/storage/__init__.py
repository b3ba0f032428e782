"""Where arrays and tables live: OME-Zarr volumes, Arrow tables, the journal, readers of other formats."""
