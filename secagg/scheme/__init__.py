"""Numbers: params and what is proved of them, codecs from tensors to blocks, rings that blocks are added in."""
