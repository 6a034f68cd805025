"""The exported miniature computes what the original does."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sgopd_trl.cli import main
from sgopd_trl.miniature import resolve
from sgopd_trl.miniature.export import export


@pytest.mark.parametrize("name", ["clean", "hard-student"])
def test_an_exported_checkpoint_is_the_same_function(tmp_path, name):
    assert main(["miniature", "export", name, "--output_dir", str(tmp_path)]) == 0
    original, exported = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (resolve(f"miniature:{name}"), tmp_path)
    )
    assert exported.config.head_dim == 32
    ids = torch.randint(2, 24, (8, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = exported(ids).logits.log_softmax(-1), original(ids).logits.log_softmax(-1)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    assert exported.generation_config.eos_token_id == original.generation_config.eos_token_id
    assert (
        AutoTokenizer.from_pretrained(tmp_path).get_vocab()
        == AutoTokenizer.from_pretrained(resolve(f"miniature:{name}")).get_vocab()
    )


def test_other_widths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of the source's 16, got 40"):
        export("miniature:clean", tmp_path, head_dim=40)
