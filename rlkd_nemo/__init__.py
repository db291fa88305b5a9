"""Reinforcement-learning distillation of reasoning on Megatron-Core: RLKD's structure reward, RLAD's TRRD loss."""

__version__ = "0.1.0"
