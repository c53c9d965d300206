"""Optical flow between consecutive frames: `solve` is the entry, each solver has a file, `quantise` packs it in 8 bits.

Flow is (2, H, W) in pixels, channel 0 = x: what is at pixel (x, y) of the first frame is at (x + flow[0], y + flow[1])
of the second. Nothing heavy is imported before a backend is chosen.
"""
