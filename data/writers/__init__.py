"""One file a format: writes records as labels that other tools read."""
