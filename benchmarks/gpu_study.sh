#!/usr/bin/env bash
# What is still to be run on a GPU. Ends within ten minutes; start it again until it says that all is done.
#
#   benchmarks/gpu_study.sh mobilenetv2 DATA/street7 WEIGHTS OUT [key.sub=value ...]
#   benchmarks/gpu_study.sh dinov2 DATA/street7 WEIGHTS OUT [key.sub=value ...]
#
# First the cost of a step, then launchers at world size 1, then street7 at 240 x 320 to convergence: six methods, five
# seeds, bf16. Images and one backbone's weights are all that it reads, less than 64 MiB. Values at the end go to the
# recipe. OUT holds a log of each step and what it made; a step that was done is not repeated.
set -euo pipefail
(($# >= 4)) || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
backbone=$1 data=$(realpath "$2") weights=$(realpath "$3") out=$4
shift 4
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "$0")/.."
deadline=$((SECONDS + 570))

step() { # NAME COMMAND...: runs the command once, as long as there is time
  local name=$1 left=$((deadline - SECONDS))
  shift
  [[ -e $out/$name.done ]] && return
  ((left > 20)) || { echo "time is over: start it again"; exit 75; }
  echo "$name: $*"
  local status=0
  timeout --signal TERM --kill-after 20 "$left" "$@" >>"$out/$name.log" 2>&1 || status=$?
  if ((status == 124 || status == 137)); then echo "$name goes on: start it again"; exit 75; fi
  ((status == 0)) || { tail -n 20 "$out/$name.log"; echo "$name failed: $out/$name.log"; exit 1; }
  touch "$out/$name.done"
}

case $backbone in
  mobilenetv2) recipe=street7_mobilenetv2 checkpoint=$weights model=mobilenetv2 image='[240, 320]' crop='[192, 256]' ;;
  dinov2) recipe=street7_dinov2 checkpoint=$out/upernet model=upernet-dinov2-small image='[238, 322]' crop='[196, 252]' ;;
  *) echo "backbone: found $backbone, expected mobilenetv2 or dinov2"; exit 2 ;;
esac

for side in 512 768; do
  step "step_cost_$side" python benchmarks/step_cost.py --models "$model" --bf16 --batch 16 --side "$side" \
    --out "$out/step_cost_$side.json"
done
[[ $backbone == mobilenetv2 ]] || step upernet python benchmarks/studies/backbone_under_upernet.py "$weights" "$checkpoint"

given=(data.root="$data" model.checkpoint="$checkpoint" data.image_size="$image" data.crop_size="$crop"
  training.use_cpu=false training.bf16=true)
for launcher in single ddp fsdp2; do
  step "$launcher" accelerate launch --config_file "recipes/accelerate/$launcher.yaml" --num_processes 1 \
    -m deft_hf.train "benchmarks/studies/$recipe.yaml" "${given[@]}" training.max_steps=100 \
    training.output_dir="$out/launchers/$launcher" "$@"
done
step study python -m deft_hf.compare "benchmarks/studies/$recipe.yaml" "${given[@]}" \
  training.max_steps=3050 method.decoder_warmup_steps=305 training.save_strategy=steps training.save_steps=500 \
  training.save_total_limit=1 training.output_dir="$out/study" "$@" \
  --methods joint,joint_ema,lp_ft,lp_ft_ema,deft,deft_split --seeds 5 --jobs 4
echo "all is done: $out"
