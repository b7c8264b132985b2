"""Adds to config_defaults.json every field that this version of transformers writes into config.json, by family.

python tests/golden/make_config_defaults.py      # needs transformers alone; run with 4.31.0, 4.46.3, 4.57.1 and 5.24.0
"""

import json
import pathlib

import transformers

CLASSES = {
    "Llama": "LlamaForCausalLM",
    "Qwen2": "Qwen2ForCausalLM",
    "Gemma": "GemmaForCausalLM",
    "Gemma2": "Gemma2ForCausalLM",
    "Gemma3Text": "Gemma3ForCausalLM",
    "Gemma3": "Gemma3ForConditionalGeneration",
    "T5": "T5ForConditionalGeneration",
    "MT5": "MT5ForConditionalGeneration",
}


def main():
    path = pathlib.Path(__file__).parent / "config_defaults.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for family, architecture in CLASSES.items():
        if kind := getattr(transformers, f"{family}Config", None):
            written = json.loads(kind(architectures=[architecture]).to_json_string(use_diff=False))
            if family == "Gemma3":
                written.pop("vision_config")
            found[f"{family} {transformers.__version__}"] = written
    path.write_text(
        "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(found)) + "\n}\n"
    )
    print(len(found), "configs")


if __name__ == "__main__":
    main()
