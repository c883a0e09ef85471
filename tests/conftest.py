"""Every test sees eight host devices; this runs before anything imports JAX."""

import os

EIGHT = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}".strip()
