"""Host code for each kernel that replays policies: its constants, arguments and results."""
