"""Heads on an encoder: one file a task, with its model, loss, prediction and metric."""
