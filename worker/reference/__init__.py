"""The reference part of docs/, written from the code: `python -m worker.reference` writes docs/reference and docs/openapi.json."""
