"""Video files in, frames out: ffmpeg is found, files are probed and decoded."""
