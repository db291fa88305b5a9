from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlkd_nemo.errors import ShapeError


@pytest.mark.parametrize(
    "name",
    ["old_log_probs", "teacher_log_probs", "ref_log_probs", "sampler_log_probs", "mask", "teacher_mask", "advantages"],
)
def test_a_wrong_shape_names_the_field(two_responses, name):
    wrong = torch.ones(2, 4, dtype=torch.bool if "mask" in name else torch.float64)
    with pytest.raises(ShapeError, match=rf"batch\.{name} is .*\(2, 4\).*\(2, 3\)"):
        replace(two_responses, **{name: wrong})


@pytest.mark.parametrize("name", ["old_log_probs", "teacher_log_probs", "mask", "teacher_mask", "advantages"])
def test_a_wrong_dtype_names_the_field(two_responses, name):
    wrong = torch.ones(2, 3, dtype=torch.float32 if "advantages" not in name else torch.int64)
    with pytest.raises(ShapeError, match=rf"batch\.{name} is torch"):
        replace(two_responses, **{name: wrong})


def test_advantages_of_one_dimension_are_refused(two_responses):
    # [tokens] would broadcast over the wrong dimension without a word.
    with pytest.raises(ShapeError, match="batch.advantages"):
        replace(two_responses, advantages=torch.zeros(3, dtype=torch.float64))


def test_a_teacher_mask_alone_is_refused(two_responses):
    with pytest.raises(ShapeError, match="teacher_mask is given without"):
        replace(two_responses, teacher_log_probs=None, teacher_mask=two_responses.mask)


def test_masked_makes_padding_zero_and_masks_explicit(two_responses, rows):
    nan = float("nan")
    batch = replace(two_responses, old_log_probs=rows(-1, -2, -3, -4, -5, padding=nan))
    safe = batch.masked()
    assert safe.old_log_probs.tolist() == [[-1, -2, -3], [-4, -5, 0]]
    assert safe.advantages.tolist() == [[1, 1, 1], [-1, -1, 0]]
    assert torch.equal(safe.teacher_mask, batch.mask)
    assert safe.log_probs.requires_grad
    # The teacher may claim padding: there is no token for it to speak of.
    assert torch.equal(replace(batch, teacher_mask=torch.ones(2, 3).bool()).masked().teacher_mask, batch.mask)
