#!/usr/bin/env bash
# From the public LLaVA-Critic data to a trained judge on one GPU. docs/gpu_quickstart.md explains each step.
# Started again with the same options, it resumes where it stopped. Run it from the repository's folder.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: configs/recipes/quickstart.sh [OPTION]... [key=value]...

  --config FILE      recipe (configs/recipes/qwen3_vl_2b_lora_1x24gb.yaml)
  --out FOLDER       of data, runs and the judge (runs/quickstart)
  --from PATH        LLaVA-Critic's files that are there already: nothing is downloaded
  --questions N      questions to use, drawn by the seed (4000)
  --held-out SHARE   of the questions, kept for evaluation (0.05)
  --sft              cold start on the model's own best sessions
  --teacher URL      cold start on the sessions of a stronger model, on an OpenAI-compatible server
  --filter           leave out what the model gets right in all of 4 rollouts
  --stage1-steps N   (20)
  --stage2-steps N   (100)
  --no-gpu           serve the judge on the CPU
  --port N           of the judge's service (8000)

key=value are keys of the recipe, for all its stages, such as learner.learning_rate=1e-5.
TEXT
}

config=configs/recipes/qwen3_vl_2b_lora_1x24gb.yaml
sft_config=configs/recipes/quickstart_sft.yaml
out=runs/quickstart from="" questions=4000 held_out=0.05 sft="" teacher="" filter="" stage1=20 stage2=100 gpu=--gpu port=8000
keys=() sft_keys=()
while (($#)); do
    case $1 in
        --config) config=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --from) from=$2; shift 2 ;;
        --questions) questions=$2; shift 2 ;;
        --held-out) held_out=$2; shift 2 ;;
        --sft) sft=yes; shift ;;
        --teacher) sft=yes teacher=$2; shift 2 ;;
        --filter) filter=yes; shift ;;
        --stage1-steps) stage1=$2; shift 2 ;;
        --stage2-steps) stage2=$2; shift 2 ;;
        --no-gpu) gpu=""; shift ;;
        --port) port=$2; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
        *)
            keys+=("$1")
            case $1 in # keys that a cold start has too
                model.* | template.* | tools.* | learner.* | placement.* | metrics.*) sft_keys+=("$1") ;;
            esac
            shift
            ;;
    esac
done

python=.venv/bin/python
[[ -x $python ]] || python=python3
step() { printf '\n== %s\n' "$*"; }

data=$out/data
train=$data/pair.parquet
common=("${keys[@]}" "run.root=$out" "data.train=[$train]" "data.held_out=[$data/pair-held_out.parquet]")

if [[ -z $from ]]; then
    step "download: one part of five, 395 MB with images (lmms-lab/llava-critic-113k)"
    from=$out/hub
    "$python" -c 'import sys; from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], repo_type="dataset", allow_patterns=[sys.argv[2]], local_dir=sys.argv[3])' \
        lmms-lab/llava-critic-113k 'pairwise/train-00000-of-*.parquet' "$from"
fi

step "training data: compared answers become pairs"
[[ -f $train ]] || "$python" -m jobs.prepare_data labelled llava_critic "$from" --out "$data" \
    "max_questions=$questions" "held_out=$held_out"

start=() # the model that GRPO starts from: the recipe's own, or the cold start's
if [[ -n $sft ]]; then
    mapfile -t model < <("$python" -c 'import sys; from arm_rl.core.config_file import load_saved
model = load_saved(sys.argv[1], sys.argv[2:]).model
print(f"model.path={model.path}")
print("model.max_pixels=" + ("null" if model.max_pixels is None else str(model.max_pixels)))' "$config" "${keys[@]}")
    ((${#model[@]} == 2)) || exit 1 # the recipe could not be read
    step "demonstrations for the cold start"
    [[ -f $data/demonstrations.parquet ]] || "$python" -m jobs.prepare_data trajectories "$config" "${common[@]}" \
        run.name=teacher --best-of 4 ${teacher:+--server "$teacher"} --out "$data/demonstrations.parquet"
    step "cold start (SFT)"
    "$python" -m jobs.sft "$sft_config" "${sft_keys[@]}" "${model[@]}" "run.root=$out" "data.train=[$data/demonstrations.parquet]"
    start=("model.path=$out/sft/export")
fi

step "accuracy before GRPO"
[[ -f $out/before/evaluation.json ]] || "$python" -m jobs.evaluate "$config" "${common[@]}" "${start[@]}" run.name=before

if [[ -n $filter ]]; then
    step "difficulty filter"
    [[ -f $data/pair-filtered.parquet ]] || "$python" -m jobs.prepare_data difficulty "$config" "${common[@]}" "${start[@]}" \
        run.name=filter --rollouts 4
    common+=("data.train=[$data/pair-filtered.parquet]")
fi

step "GRPO stage 1: call tools"
"$python" -m jobs.train "$config" "${common[@]}" "${start[@]}" \
    run.name=stage1 reward.name=stage1 "num_steps=$stage1"

step "GRPO stage 2: be right"
"$python" -m jobs.train "$config" "${common[@]}" \
    run.name=stage2 reward.name=stage2 "model.path=$out/stage1/export" "num_steps=$stage2"

step "export"
[[ -d $out/judge ]] || "$python" -m jobs.export "$out/stage2" "$out/judge"

step "accuracy after GRPO"
[[ -f $out/after/evaluation.json ]] || "$python" -m jobs.evaluate "$config" "${common[@]}" "model.path=$out/judge" run.name=after

step "report"
"$python" -m jobs.report "$out/stage2"

step "serve the judge, and ask it once"
"$python" -m jobs.serve "$out/judge" $gpu --port "$port" &
service=$!
trap 'kill "$service" 2>/dev/null || true' EXIT
until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; do
    kill -0 "$service" 2>/dev/null || { echo "the service has ended" >&2; exit 1; }
    sleep 1
done
curl --silent --fail-with-body --header 'Content-Type: application/json' "http://127.0.0.1:$port/v1/judge" \
    --data '{"question": "Which number is larger, 7 or 4?", "answers": ["7 is larger.", "4 is larger."]}'
echo
kill "$service"
wait "$service" || true
trap - EXIT

step "done"
echo "the judge is in $out/judge; accuracy: $out/before/evaluation.json, $out/after/evaluation.json"
echo "serve it: $python -m jobs.serve $out/judge $gpu"
