"""What training reads and how it is scored: sampling, transforms, loaders, metrics."""
