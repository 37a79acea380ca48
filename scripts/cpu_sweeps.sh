#!/usr/bin/env bash
# The benchmark at CPU scale, as sweeps of `bench run -m` over minilm_l6.
#
#   ADALORA_BENCH_DATA=FOLDER scripts/cpu_sweeps.sh [main|rte|ablations|budgets|baselines ...]     (default: all)
#   BENCH="bench plan" scripts/cpu_sweeps.sh                                                       only says what it would do
#
# What is recorded is skipped, an interrupted unit goes on from its checkpoint: call it as often as you like.
# PYTHON names the interpreter of scripts/search_cpu.py where it is not `python`.
# Settings: conf/pair/minilm_l6 and conf/recipe/minilm_l6; scripts/search_cpu.py searches and writes the recipes.
# A failed sweep does not stop the rest.
set -u
BENCH=${BENCH:-bench run}
STATUS=0

sweep() {
  echo "== $*"
  # BENCH may hold several words and an interpreter
  $BENCH -m "$@" backbone=minilm_l6 scale=cpu ${RUN_ARGS:-}
  local code=$?
  if [ "$code" -ge 128 ]; then exit "$code"; fi
  if [ "$code" -ne 0 ]; then STATUS=1; fi
}

searched() {
  # A row at other settings than the recipe's, at the learning rate of its own search; searched TASK ROW
  local line settings
  if line=$("${PYTHON:-python}" "$(dirname "$0")/search_cpu.py" --task "$1" --methods "$2" --chosen); then
    read -ra settings <<<"$line"
    sweep "task=$1" "${settings[@]}"
  else
    STATUS=1
  fi
}

main() {
  local task row
  for task in stsb mrpc film_reviews; do
    sweep task=$task method=lora,increlora,sora,alora,aflora,delta_lora,adalora
    sweep task=$task method=full,bitfit,vera,dylora,salora,houlsby,pfeiffer
    for row in lora_r2 lora_qv increlora_r8; do searched $task $row; done
  done
  for row in lora_searched increlora_searched; do searched film_reviews $row; done  # beside the settings of `make demo`
}

rte() {
  sweep task=rte method=lora,adalora,increlora,alora
}

ablations() {
  # IncreLoRA, Table 2
  sweep task=stsb method=increlora method.orthogonality=0.0,0.1 method.advance_learning=true,false
  sweep task=stsb method=increlora method.restart_warmup=false
  # AFLoRA, Tables 4 and 5 and Figure 4
  sweep task=stsb method=aflora 'method.train_matrices=[],[q,k,v,o]'
  sweep task=stsb method=aflora 'method.train_matrices=[all]'
  sweep task=stsb method=aflora 'method.train_matrices=[all]' method.freeze=false
  sweep task=stsb method=aflora method.score=weight_times_grad,grad_over_weight
  # Delta-LoRA with dropout in the branch
  sweep task=stsb method=delta_lora method.dropout=0.1 method.allow_dropout=true
  # What Delta-LoRA is where W moves from the start: LoRA with (1 + lambda) alpha, 1.5 x 16. AdamW does not see the
  # size of the gradients, but clipping would.
  sweep task=stsb method=delta_lora method.start=0 method.lr=1e-3 train.max_grad_norm=0
  sweep task=stsb method=lora 'method.targets=[q,v]' method.alpha=24 method.lr=1e-3 train.max_grad_norm=0
  # ALoRA, Table 6
  sweep task=stsb method=alora_dnas,alora_sensi
  # ELoRA's rank: AFLoRA, Figure 2
  sweep task=stsb method=vera method.rank=64,512
}

budgets() {
  # ALoRA, Figure 2; IncreLoRA, Figure 4. For SoRA the budget is the rank that it starts with.
  sweep task=mrpc method=lora,sora,alora method.rank=2,4,8
  sweep task=mrpc method=increlora method.target_rank=2
  sweep task=mrpc method=increlora method.target_rank=4 method.ranks_per_growth=2
  sweep task=mrpc method=increlora method.target_rank=8 method.ranks_per_growth=4
  # SoRA's sparsifying schedule: Algorithm 1, Figure 2
  sweep task=mrpc method=sora 'method.stages=[3.0,12.0,24.0]'
}

baselines() {
  # The other rows of the papers' tables, one seed
  sweep task=mrpc 'seeds=[0]' method=full_no_embeddings,full_two_matrices,parallel_adapter,adapterdrop,learned_adapter,lst,ptuning_v2,spt,ssp
  sweep task=mrpc 'seeds=[0]' method=peft_dora,peft_pissa,peft_oft,peft_boft,peft_ia3,peft_fourierft,peft_adalora
}

for part in "${@:-main rte ablations budgets baselines}"; do
  for name in $part; do "$name"; done
done
exit "$STATUS"
