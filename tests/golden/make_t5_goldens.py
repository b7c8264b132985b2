"""Writes t5_<case>.npz: the float32 logits that transformers computes from the seeded weights.

python tests/golden/make_t5_goldens.py      # needs torch and transformers, no jax
"""

import pathlib

import numpy as np
import t5_cases
import torch
import transformers


def main():
    for name in t5_cases.CASES:
        raw = t5_cases.huggingface_config(name)
        config = transformers.T5Config(**raw, dropout_rate=0.0)
        config.tie_word_embeddings = raw["tie_word_embeddings"]
        model = transformers.T5ForConditionalGeneration(config).eval()
        tensors = t5_cases.huggingface_tensors(name, t5_cases.make_params(name))
        # Every module that transformers may tie is given its own copy of the same values.
        tensors |= {f"{stack}.embed_tokens.weight": tensors["shared.weight"] for stack in ("encoder", "decoder")}
        tensors.setdefault("lm_head.weight", tensors["shared.weight"])
        state = {key: torch.from_numpy(np.ascontiguousarray(w)) for key, w in tensors.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not missing and not unexpected, (missing, unexpected)
        given, decoded = (torch.from_numpy(each).long() for each in t5_cases.make_tokens(name))
        mask = torch.arange(t5_cases.INPUT)[None] < torch.tensor(t5_cases.LENGTHS)[:, None]
        with torch.no_grad():
            logits = model(input_ids=given, attention_mask=mask.long(), decoder_input_ids=decoded).logits.numpy()
        path = pathlib.Path(__file__).parent / f"t5_{name}.npz"
        np.savez_compressed(path, logits=logits)
        print(f"{path.name}: {path.stat().st_size} bytes, logits std {logits.std():.2f}")


if __name__ == "__main__":
    main()
