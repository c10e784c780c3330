"""Callbacks for frameworks that own the training loop, one per file, each imported by its full name.

``from losscope.probes.integrations.transformers import WatchCallback`` for Hugging Face's Trainer, ``.lightning`` for
Lightning. Loops of accelerate are ordinary ones: `losscope.probes.watch` takes what its ``prepare`` returns.
"""
