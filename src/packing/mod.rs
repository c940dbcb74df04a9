//! Packings of matrices into ciphertexts, and the counts that a planner reads.
