"""Names that make up the `compact` format."""

METHOD = "spq"
"""`quantization_config.quant_method` of an artifact."""
FORMAT_VERSION = 1
CLASS_PREFIX = "Spq"
"""An artifact's classes are the source's with this prefix."""
