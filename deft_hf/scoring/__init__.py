"""Scoring a model: logits at the label's size, one streamed confusion matrix per domain, tables and figures.

Import the modules themselves, so that counting pixels does not import plotting: [`~deft_hf.scoring.confusion`],
[`~deft_hf.scoring.inference`], [`~deft_hf.scoring.metric`], [`~deft_hf.scoring.report`].
"""
