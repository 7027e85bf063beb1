# Sourced by run: a real SLURM cluster for tests/slurm, where there can be one. Without it those tests skip and say so.
# RLHF_SLURM_TEST names the folder with slurm_up.sh and slurm_down.sh.

slurm_scripts=$(realpath "${RLHF_SLURM_TEST:-../shared/slurm}" 2>/dev/null || true)
slurm_packages=(slurmctld slurmd slurm-client munge slurmdbd mariadb-server)
slurm_started=

no_slurm() { echo "no SLURM cluster for the tests: $*" >&2; return 1; }

start_slurm() {
    [ -z "${SLURM_CONF:-}" ] || return 0 # somebody has started one
    [ -x "$slurm_scripts/slurm_up.sh" ] || { no_slurm "no slurm_up.sh in ${slurm_scripts:-../shared/slurm}"; return 1; }
    [ "$(id -u)" = 0 ] || { no_slurm "its daemons need root"; return 1; }
    if ! PATH=$PATH:/usr/sbin command -v slurmctld slurmd munged mariadbd slurmdbd >/dev/null; then
        command -v apt-get >/dev/null || { no_slurm "no apt-get to install ${slurm_packages[*]}"; return 1; }
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            "${slurm_packages[@]}"; } >/dev/null 2>&1 ||
            { no_slurm "apt-get could not install ${slurm_packages[*]}"; return 1; }
    fi
    SLURM_TEST_DIR=$(mktemp -d /tmp/slurm.XXXXXX)
    export RLHF_SLURM_TEST=$slurm_scripts SLURM_TEST_DIR
    export SLURM_TEST_PORT=$((20000 + $$ % 900 * 40)) SLURM_TEST_PREFIX=ci$$n
    slurm_started=yes
    "$slurm_scripts/slurm_up.sh" >"$SLURM_TEST_DIR.log" 2>&1 ||
        { no_slurm "slurm_up.sh failed: $(tail -n 1 "$SLURM_TEST_DIR.log")"; stop_slurm; return 1; }
    . "$SLURM_TEST_DIR/env.sh"
}

stop_slurm() {
    [ -n "$slurm_started" ] || return 0
    "$slurm_scripts/slurm_down.sh" --purge || true
    rm -f "$SLURM_TEST_DIR.log"
    unset SLURM_TEST_DIR SLURM_TEST_PORT SLURM_TEST_PREFIX SLURM_CONF
    slurm_started=
}
