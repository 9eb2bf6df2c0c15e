"""Jumped against stepped: contenders that share a start, interleaved, and a report on them."""
