"""What the commands share: arguments, output, signals."""
