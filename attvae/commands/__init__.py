"""One file for each command or small family. Heavy imports stay inside the functions; attvae.cli lists them."""
