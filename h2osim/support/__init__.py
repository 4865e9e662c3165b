"""What every part of the package uses: errors, this machine, bundled folders, words of messages."""
