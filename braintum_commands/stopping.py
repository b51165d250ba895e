"""How whoever started a training asks it to stop: with a file, which reaches all ranks, on any machine."""

STOP_VARIABLE = "braintum_stop_file"
"""Environment variable: a file. Once it is there, a training of ours writes its latest checkpoint after the epoch that
is under way, and ends with exit code 75; ``--c`` goes on from there. `braintum_run` sets it."""

EXIT_STOPPED = 75
"""Of a training that was asked to stop: a temporary failure, by the convention of sysexits.h."""
