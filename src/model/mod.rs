//! Checkpoint import, tokenizer, fixed-point graph, plaintext oracle and calibration.
