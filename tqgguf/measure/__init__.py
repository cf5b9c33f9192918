"""What quantization and rotation did: measured errors as rows of plain values."""
