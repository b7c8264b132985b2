"""Writes configs.npz: the float32 logits that transformers computes from the files of config_cases.

python tests/golden/make_config_goldens.py      # needs torch, transformers and accelerate, no jax
"""

import pathlib
import tempfile

import config_cases
import numpy as np
import torch
import transformers


def main():
    logits = {}
    for name in config_cases.CASES:
        with tempfile.TemporaryDirectory() as folder:
            directory = config_cases.write(pathlib.Path(folder), name)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, attn_implementation="eager"
            )
        tokens = torch.from_numpy(config_cases.make_tokens(name)).long()
        with torch.no_grad():
            logits[name] = model(tokens, use_cache=False).logits.numpy()[:, -config_cases.KEPT :]
        print(f"{name}: {type(model).__name__}, logits std {logits[name].std():.2f}")
    np.savez_compressed(pathlib.Path(__file__).parent / "configs.npz", **logits)


if __name__ == "__main__":
    main()
