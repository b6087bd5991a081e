"""Requests and parts of requests that several tests send."""

SLOW = {"perplexity": ["builtin"], "length": 64, "limit": 2, "trials": 12, "new_tokens": 150}
PAPER = {"extends": "spq-paper", "calibration": {"dataset": "builtin", "samples": 3, "length": 32}}

HEADERS = ["config.json", "model.safetensors"]
"""What is read of before a job is accepted."""
LONG = {
    "extends": "spq-paper",
    "stages": [
        {"type": "quantize", "method": "rate"},
    ],
    "target": {"bytes_ratio": 0.5},
    "calibration": {"dataset": "builtin", "form": "windows", "samples": 48, "length": 128},
}
MEASURED = {"perplexity": ["builtin"], "length": 64, "limit": 900, "throughput": False}
