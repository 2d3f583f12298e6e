#!/bin/bash
# Made by sae launch slurm. Changes are kept: submit it with sbatch as often as you like, it goes on with the run that is there.
# As long as this fits the other lines, sae launch slurm may write over them: checksum {{checksum}}
{{options}}
# A node that fails puts the job back into the queue, and what it writes then comes after what it wrote before.
#SBATCH --requeue
#SBATCH --open-mode=append
# To the ranks, not to this script: they save and exit with 75 before the time is over, as on TERM, INT, HUP, USR2 and XCPU.
#SBATCH --signal=USR1@{{save_s}}
{{prologue}}
# Since version 22.05 srun does not take this from the job.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# A rank that fails ends the others. The exit code is the highest of all ranks'.
srun --kill-on-bad-exit=1 {{command}}
code=$?

starts_again="${SLURM_RESTART_COUNT:-0}"
case "$code" in
0) exit 0 ;;
# Storage that does not answer, hardware, the time limit; above 128 signals.
69 | 71 | 75 | 129 | 13? | 14? | 15?)
    if [ "$starts_again" -lt {{restarts}} ]; then
        echo "sae ended with exit code $code: the job goes back into the queue" >&2
        # Ends this script too.
        scontrol requeue "$SLURM_JOB_ID" && sleep 60
    fi
    echo "sae ended with exit code $code after $starts_again restarts: look for why, then submit the script again" >&2
    ;;
*) echo "sae ended with exit code $code, which another start would not change: its message above says what to do" >&2 ;;
esac
exit "$code"
