"""Text files to training batches: `read` -> `prepare` -> `store` -> `batches`. Knows no model."""
