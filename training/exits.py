"""How a run ends that is to be resumed: exit codes, those of sysexits.h that say so."""

# What it needs is away, as a server that writes rollouts.
AWAY = 69
# Its disk takes no more.
FULL = 74
# It was asked to stop, and lies in a checkpoint.
STOPPED = 75
