"""What a publisher puts online: files of several sizes, their table, their card, checksums."""
