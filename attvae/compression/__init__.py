"""Lossless coding of images with a trained model: bits-back coding on asymmetric numeral systems (docs/compress.md)."""
