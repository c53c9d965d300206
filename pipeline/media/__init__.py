"""Video files and folders of images in, frames out: ffmpeg is found, videos are probed and decoded."""
