"""Where artifacts live: webdataset shards of frames, zarr arrays of flow, and atomic publishing of both."""
