#!/bin/bash
# SLURM on this machine, to try launcher=slurm: one controller and one node with Debian's packages (slurmctld slurmd
# slurm-client munge), everything in a folder of its own, without systemd and without accounting.
#
#   scripts/local_slurm.sh start FOLDER     prints the line that makes sbatch and bench find it
#   scripts/local_slurm.sh stop FOLDER
#
# The daemons run as the calling user and run jobs of that user only; root is not needed.
set -eu

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
[ $# -eq 2 ] || usage
command=$1
folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf

stop_one() { # by the process id that the daemon wrote
    if [ -f "$folder/$1.pid" ]; then
        kill "$(cat "$folder/$1.pid")" 2>/dev/null || true
        rm -f "$folder/$1.pid"
    fi
}

case $command in
stop)
    scancel --user="$(id -un)" 2>/dev/null || true
    for daemon in slurmd slurmctld munged; do stop_one $daemon; done
    exit 0
    ;;
start) ;;
*) usage ;;
esac

for program in slurmctld slurmd sbatch munged; do
    PATH=$PATH:/usr/sbin command -v $program >/dev/null ||
        { echo "$program is missing: apt-get install slurmctld slurmd slurm-client munge"; exit 1; }
done
export PATH=$PATH:/usr/sbin
mkdir -p "$folder/state" "$folder/spool"
chmod 700 "$folder"
[ -f "$folder/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")

user=$(id -un)
host=$(hostname -s)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
cat >"$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=5
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=30
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    printf 'CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n'
else
    echo CgroupPlugin=cgroup/v1
fi >"$folder/cgroup.conf"

munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF" -N "$host"
for _ in $(seq 60); do
    if sinfo --noheader --format=%t 2>/dev/null | grep -q idle; then
        echo "export SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 0.5
done
echo "the node did not come up; see $folder/*.log" >&2
exit 1
