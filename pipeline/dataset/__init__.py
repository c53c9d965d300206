"""What there is to do: the manifest, its plan in shards, artifact keys, receipts and the quarantine ledger."""
