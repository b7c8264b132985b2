"""Writes decoder_<case>.npz: tokens, and the float32 logits that transformers computes from the seeded weights.

python tests/golden/make_decoder_goldens.py      # needs torch and transformers, no jax
"""

import pathlib

import decoder_cases
import hf_models
import numpy as np
import torch


def main():
    for name, case in decoder_cases.CASES.items():
        tokens = decoder_cases.make_tokens(name)
        model = hf_models.build(case, decoder_cases.make_params(name))
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
        path = pathlib.Path(__file__).parent / f"decoder_{name}.npz"
        np.savez_compressed(path, tokens=tokens, logits=logits)
        print(f"{path.name}: {type(model).__name__}, {path.stat().st_size} bytes, logits std {logits.std():.2f}")


if __name__ == "__main__":
    main()
