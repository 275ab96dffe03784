"""The decoding loop: sequences, guidance and sampling."""
