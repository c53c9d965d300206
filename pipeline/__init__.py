"""Foundation of wherewhen: configuration, the dataset plan, media, flow, stores and what training reads.

Imports run one way: ``stages`` -> ``models`` and ``pipeline``; ``pipeline`` imports neither of them.
"""

__version__ = "0.1.0"
