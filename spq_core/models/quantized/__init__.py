"""Models whose weights are quantized already: what of them is widened to 16 bits, by whose rule, and what is refused by name."""
