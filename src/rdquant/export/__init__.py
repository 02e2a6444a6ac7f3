"""Integer networks for other engines: standard quantize-dequantize graphs with our ranges.

What a decoder needs to read symbols stays in our own integers, so that files are the same whichever engine
makes the pixels.
"""
