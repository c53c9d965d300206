"""Attention models for video action recognition, in plain torch.

One file per paper family, read top to bottom in the paper's order; image networks in `backbones`; published checkpoints
in `weights`; the project's own checkpoints in `checkpoint`; the single place that chooses a model in `build`.
Importable alone: nothing here knows about the pipeline or its stages.
"""
