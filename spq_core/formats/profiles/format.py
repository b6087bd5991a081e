"""Names and sizes of our format. Free of torch."""

METHOD = "spq"
"""`quantization_config.quant_method` of an artifact."""
FORMAT_VERSION = 1
CLASS_PREFIX = "Spq"
"""An artifact's classes are the source's with this prefix."""
FIXED_BYTES = 8_000
BYTES_PER_MATRIX = 720
"""What configuration, index, manifest and shard headers take beside tensors (measured)."""
