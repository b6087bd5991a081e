"""Names and sizes of the profiles' formats. Free of torch."""

METHOD = "spq"
"""`quantization_config.quant_method` of an artifact."""
FORMAT_VERSION = 1
CLASS_PREFIX = "Spq"
"""An artifact's classes are the source's with this prefix."""
FIXED_BYTES = 8_000
BYTES_PER_MATRIX = 720
"""What configuration, index, manifest and shard headers take beside tensors (measured)."""
PORTABLE_WIDTH_MULTIPLE = 128
"""Of neurons in the `portable` profile: what kernels of other runtimes want, and what tensor parallelism
can divide."""
