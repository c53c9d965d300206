"""Image networks that turn one snippet into one feature vector, with the key names of their published checkpoints.

Each module keeps the promise written in `convention.Backbone`: raw maps in, `feature_dim` features out, and an
`input_spec` that says how its weights expect the pixels.
"""
